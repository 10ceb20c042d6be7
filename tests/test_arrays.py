"""Pictures in memory as a data source: arrays and PyTorch data sets, trained on, judged and gone on with."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import cifarlab
from cifarlab.calibration import calibrate
from cifarlab.cli import main
from cifarlab.data import Source, from_arrays, from_dataset, from_folder
from cifarlab.errors import UserError
from cifarlab.figures import named
from cifarlab.report import write_report
from cifarlab.run import Run
from tests.tiny import RECIPE, tiny_source

NAMES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")
SHORT = RECIPE.model_copy(update={"epochs": 2})


@pytest.fixture(scope="module")
def content() -> tuple[np.ndarray, np.ndarray]:
    split = tiny_source().load("train")
    return split.images[:160], split.labels[:160]


def given(content: tuple[np.ndarray, np.ndarray], n_test: int = 40) -> Source:
    images, labels = content
    test = (images[-n_test:], labels[-n_test:]) if n_test else None
    return from_arrays(images[: 160 - n_test], labels[: 160 - n_test], test=test, classes=NAMES)


@pytest.fixture(scope="module")
def run(content: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return cifarlab.train(SHORT, data=given(content), out=tmp_path_factory.mktemp("arrays") / "run")


def test_a_run_on_arrays_is_judged_with_the_same_arrays(run: Run, content) -> None:
    assert run.classes == NAMES and run.data["in_memory"] is True
    again = "was trained on data given in Python (arrays): give the same"
    with pytest.raises(UserError, match=r"given in Python \(arrays\): give the same source again, as data="):
        cifarlab.evaluate(run)
    with pytest.raises(UserError, match="was trained on other data"):
        cifarlab.evaluate(run, data=given((content[0][::-1], content[1])))
    result = cifarlab.evaluate(run, data=given(content))
    assert result.n == 40 and [each.name for each in result.classes] == list(NAMES)
    assert cifarlab.evaluate(run).accuracy == result.accuracy, again  # from the stored answers


def test_the_command_line_says_that_it_cannot_have_the_arrays(run: Run, capsys) -> None:
    assert main(["resume", str(run.path), "--epochs", "3"]) == 2
    error = capsys.readouterr().err
    assert "given in Python" in error and "give the same source again" in error and error.count("\n") == 1


def test_a_run_on_arrays_is_gone_on_with(run: Run, content, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    with pytest.raises(UserError, match="give the same source again"):
        cifarlab.resume(copy, epochs=3)
    assert len(cifarlab.resume(copy, epochs=3, data=given(content)).metrics) == 3


def test_report_and_figures_take_the_arrays_again(run: Run, content, tmp_path: Path, capsys) -> None:
    copy, source = Run(shutil.copytree(run.path, tmp_path / "run")), given(content)
    draw = {"predictions": named.predictions, "probabilities": named.probabilities}
    for stored in copy.path.glob("logits-*"):
        stored.unlink()
    with pytest.raises(UserError, match=r"cifarlab\.evaluate\('.*', data=source\) in Python"):
        write_report([copy], tmp_path / "page.html", data=source)
    result = cifarlab.evaluate(copy, data=source)
    assert write_report([copy], tmp_path / "page.html", data=source).accuracies == (result.accuracy,)
    for name, figure in draw.items():
        assert figure(copy, data=source).axes
        with pytest.raises(UserError, match="was trained on other data"):
            figure(copy, data=given((content[0][::-1], content[1])))
        assert main(["figure", name, str(copy.path), "--out", str(tmp_path / "x.png")]) == 2
        error = capsys.readouterr().err
        assert "cifarlab.figures.named take it alike" in error and error.count("\n") == 1
    assert main(["report", str(copy.path), "--out", str(tmp_path / "x.html")]) == 2
    error = capsys.readouterr().err
    assert "cifarlab.report.write_report" in error and error.count("\n") == 1
    assert (
        main(["figure", "predictions", str(copy.path), "--data", "demo", "--out", str(tmp_path / "x.png")])
        == 2
    )
    assert "--data is not for the figure predictions" in capsys.readouterr().err


def test_without_test_pictures_validation_judges(content, tmp_path: Path) -> None:
    source = given(content, n_test=0)
    run = cifarlab.train(SHORT, data=source, out=tmp_path / "run", overrides={"epochs": 1})
    with pytest.raises(UserError, match="arrays has no test pictures"):
        cifarlab.evaluate(run, data=source)
    with pytest.raises(UserError, match="give the same source again"):
        calibrate(run)
    assert calibrate(run, data=source)["n"] == 32
    assert cifarlab.evaluate(run, data=source, split="validation").n == 32


def test_labels_may_be_names_numbers_or_places() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    assert from_arrays(images, ["cow", "ant", "cow", "bee"]).classes == ("ant", "bee", "cow")
    assert from_arrays(images, [7, 3, 7, 12]).classes == ("3", "7", "12")
    source = from_arrays(images, [2, 0, 2, 1], classes=["ant", "bee", "cow"], test=(images[:1], ["cow"]))
    assert source.load("train").labels.tolist() == [2, 0, 2, 1] and source.load("test").labels.tolist() == [2]
    named = from_arrays(
        images, ["cow", "ant", "cow", "bee"], classes=["ant", "bee", "cow"], test=(images[:1], [2])
    )
    assert named.checksum == source.checksum
    for kind in (object, bytes):  # as pandas and HDF5 give names
        other = np.array(["cow", "ant", "cow", "bee"]).astype(kind)
        again = from_arrays(images, other, test=(images[:1], other[:1]))
        assert again.classes == ("ant", "bee", "cow") and again.load("test").labels.tolist() == [2]
    numbers = from_arrays(images, [7, 3, 7, 12], test=(images[:2], [12, 3]))
    assert numbers.load("test").labels.tolist() == [2, 0]


def test_what_becomes_of_the_arrays_later_changes_nothing() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images.flags.writeable = False
    source = from_arrays(images, [0, 1, 0, 1])
    images.flags.writeable = True
    images += 1
    assert source.load("train").images.max() == 0 and source.load("train").images.flags.writeable


def test_grey_pictures_become_rgb_and_the_checksum_is_of_everything() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
    labels = [0, 1, 0, 1]
    source = from_arrays(grey, labels)
    assert source.load("train").images.shape == (4, 8, 8, 3)
    assert source.checksum == from_arrays(grey[..., None], labels).checksum
    others = [
        from_arrays(grey, labels, classes=["a", "b"]),
        from_arrays(grey, labels[::-1]),
        from_arrays(grey[::-1], labels),
        from_arrays(grey, labels, test=(grey, labels)),
    ]
    assert len({source.checksum, *(other.checksum for other in others)}) == 5
    assert from_arrays(torch.from_numpy(grey), torch.tensor(labels)).checksum == source.checksum


U8 = np.zeros((4, 8, 8, 3), np.uint8)
MISTAKES = {
    "floats": (U8 / 255.0, [0, 1, 0, 1], {}, r"should be uint8, 0 to 255, float64 given: \(images \* 255\)"),
    "channels first": (U8.transpose(0, 3, 1, 2), [0, 1, 0, 1], {}, "channels come last"),
    "one picture": (U8[0], [0], {}, r"should be \(N, H, W, 3\)|there are 8 images and 1 labels"),
    "four channels": (np.zeros((4, 8, 8, 4), np.uint8), [0, 1, 0, 1], {}, r"\(4, 8, 8, 4\) given"),
    "none": (U8[:0], [], {}, "with pixels"),
    "too few labels": (U8, [0, 1], {}, "4 images and 2 labels"),
    "one-hot": (U8, np.eye(4), {}, r"one for each picture, float64 \(4, 4\) given"),
    "one class": (U8, [1, 1, 1, 1], {}, "two classes or more, 1 given"),
    "beyond the classes": (U8, [0, 1, 2, 1], {"classes": ["a", "b"]}, "should be 0 to 1"),
    "an unknown name": (
        U8,
        ["a", "b", "c", "a"],
        {"classes": ["a", "b"]},
        "'c', which is none of the 2 classes",
    ),
    "classes twice": (U8, [0, 1, 0, 1], {"classes": ["a", "a"]}, "classes should differ"),
    "another size": (U8, [0, 1, 0, 1], {"test": (U8[:, :4], [0, 1, 0, 1])}, r"test images are \(4, 8\)"),
    "a class never trained": (
        U8,
        [3, 5, 3, 5],
        {"test": (U8[:1], [4])},
        "'4', which is none of the 2 classes",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_arrays_that_are_no_pictures_and_labels_are_one_line(mistake: str) -> None:
    images, labels, more, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        from_arrays(images, labels, **more)
    assert "\n" not in str(caught.value)


class Pictures(Dataset):
    """As torchvision's data sets are: a Pillow image and a number."""

    classes = ("cat", "dog")

    def __init__(self, images: np.ndarray, change=Image.fromarray) -> None:
        self.images, self.change = images, change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int):
        return self.change(self.images[place]), place % 2


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    "change",
    [Image.fromarray, lambda image: image, to_tensor, lambda image: torch.from_numpy(image).permute(2, 0, 1)],
)
def test_any_pytorch_data_set_gives_the_same_source(change) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    source = from_dataset(Pictures(images, change), test=Pictures(images[:2], change))
    assert source.name == "pictures" and source.classes == ("cat", "dog")
    assert np.array_equal(source.load("train").images, images)
    assert source.load("train").labels.tolist() == [0, 1] * 3 and len(source.load("test").labels) == 2
    tensors = TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2), torch.arange(6) % 2)
    assert np.array_equal(from_dataset(tensors).load("train").images, images)


def test_items_that_are_no_pictures_are_one_line() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=r"picture 0 of dataset has values -1 to -1; .* data.preparation"):
        from_dataset(Pictures(images, lambda image: to_tensor(image) - 1))
    with pytest.raises(UserError, match="should have a length and items by number"):
        from_dataset(iter([]))
    with pytest.raises(UserError, match="item 0 of dataset should be a picture and its label"):
        from_dataset([images[0]])
    sizes = Pictures(
        images, lambda image: Image.new("RGB", (4 + len(made), 8)) if not made.append(1) else None
    )
    made: list[int] = []
    with pytest.raises(UserError, match="should be of one size"):
        from_dataset(sizes)
    with pytest.raises(UserError, match="dataset is empty"):
        from_dataset(Pictures(images[:0]))


def test_a_folder_is_opened_as_the_command_line_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    for place, image in enumerate(images):
        folder = tmp_path / "pets" / ("cat", "dog")[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{place}.png")
    source = from_folder(tmp_path / "pets", size_pixels=32)
    assert source.classes == ("cat", "dog") and source.name == "pets" and not source.in_memory
    settings = {"input.size": 32, "epochs": 1, "batch_size": 4, "data.validation": "none"}
    run = cifarlab.train(SHORT, data=source, out=tmp_path / "run", overrides=settings)
    assert cifarlab.evaluate(run).n + run.data["n_train"] == 24  # opened again by itself
    (tmp_path / "pets" / "cat" / "broken.png").write_bytes(b"none")
    with pytest.raises(UserError, match="broken.png"):
        from_folder(tmp_path / "pets")
    assert from_folder(tmp_path / "pets", skip_unreadable=True).checksum == source.checksum


def test_a_source_without_test_pictures_is_not_a_test_set(content) -> None:
    source = given(content, n_test=0)
    assert source.splits == ("train",) and dataclasses.replace(source).in_memory

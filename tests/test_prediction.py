"""What a network says of pictures: in order, ranked, the same in any company, whatever is wrong with its neighbours."""

import csv
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cifarlab import job as job_module
from cifarlab import training
from cifarlab.errors import UserError
from cifarlab.models import build_model
from cifarlab.models.specs import VGG
from cifarlab.prediction import Prediction, Predictor, Ranked, load_predictor, write_csv
from cifarlab.preparation import Preparation
from cifarlab.run import Run
from tests.tiny import RECIPE, tiny_source, use_source

CLASSES = ("red", "green", "blue")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
BY_255 = Preparation(8, 8, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


class Brightness(nn.Module):
    """Logits: how red, green and blue a picture is."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(4.0))
        self.batches: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        assert not self.training and inputs.dtype == torch.float32 and inputs.max() <= 1.0
        self.batches.append(len(inputs))
        return self.gain * inputs.mean(dim=(2, 3))


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(Brightness(), BY_255, CLASSES)


def names(predictions: list[Prediction]) -> list[str]:
    return [prediction.error or prediction.predictions[0].class_name for prediction in predictions]


def save(folder: Path, name: str, colour: str, size: int = 8) -> Path:
    path = folder / name
    Image.new("RGB", (size, size), COLOURS[colour]).save(path)
    return path


def test_a_path_gives_ranked_classes(predictor: Predictor, tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", "green", size=50)
    (prediction,) = predictor.predict(path, top=2)
    e = np.exp(4.0)
    assert prediction.path == str(path) and prediction.error is None
    assert [ranked.class_name for ranked in prediction.predictions] == [
        "green",
        "red",
    ]  # equals in their own order
    assert [ranked.index for ranked in prediction.predictions] == [1, 0]
    assert [ranked.probability for ranked in prediction.predictions] == pytest.approx(
        [e / (e + 2), 1 / (e + 2)]
    )
    assert prediction.to_dict() == {
        "path": str(path),
        "error": None,
        "predictions": [
            {"index": 1, "class": "green", "probability": prediction.predictions[0].probability},
            {"index": 0, "class": "red", "probability": prediction.predictions[1].probability},
        ],
        "unlike_training": None,
    }


def test_every_way_of_giving_pictures(predictor: Predictor, tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", "red")
    green, blue = Image.new("RGB", (20, 9), COLOURS["green"]), np.full((8, 8, 3), COLOURS["blue"], np.uint8)
    large_blue = np.full((30, 10, 3), COLOURS["blue"], np.uint8)
    assert names(predictor.predict(str(path))) == ["red"]
    assert names(predictor.predict(green)) == ["green"]
    assert names(predictor.predict(blue)) == ["blue"]
    assert names(predictor.predict(np.stack([blue, blue[..., ::-1]]))) == ["blue", "red"]
    mixed = predictor.predict([large_blue, path, green, str(path)])
    assert names(mixed) == ["blue", "red", "green", "red"]
    assert [prediction.path for prediction in mixed] == [None, str(path), None, str(path)]
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("pictures", "given"),
    [
        (np.zeros((8, 8, 3)), r"uint8 \(H, W, 3\) or \(N, H, W, 3\), float64 \(8, 8, 3\) given"),
        (np.zeros((8, 8), np.uint8), r"uint8 \(8, 8\) given"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"uint8 \(2, 3, 8, 8\) given"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \(0, 8, 3\) given"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], r"should be uint8 \(H, W, 3\), uint8 \(1, 8, 8, 3\) given"),
        ([3], "a path, a Pillow image or a uint8 array, int given"),
    ],
)
def test_what_is_not_a_picture_is_refused(predictor: Predictor, pictures: object, given: str) -> None:
    with pytest.raises(UserError, match=given):
        predictor.predict(pictures)  # type: ignore[arg-type]


def test_top_is_at_least_one_and_at_most_all(predictor: Predictor) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    assert len(predictor.predict(picture, top=1)[0].predictions) == 1
    assert len(predictor.predict(picture, top=99)[0].predictions) == 3
    for top in (0, -1, True, 1.5):
        with pytest.raises(UserError, match=f"top should be a whole number from 1 to 3, {top} given"):
            predictor.predict(picture, top=top)  # type: ignore[arg-type]


def test_a_bad_file_gives_an_error_and_the_rest_go_on(predictor: Predictor, tmp_path: Path) -> None:
    paths: list[Path] = []
    for index in range(150):
        paths.append(save(tmp_path, f"{index}.png", CLASSES[index % 3]))
        if index % 50 == 7:
            paths[-1].write_bytes(paths[-1].read_bytes()[:40])
    paths[100] = tmp_path / "missing.png"
    found = predictor.predict(paths)
    assert [prediction.path for prediction in found] == [str(path) for path in paths]
    bad = {index for index, prediction in enumerate(found) if prediction.error}
    assert bad == {7, 57, 100, 107}
    assert all(not found[index].predictions and str(paths[index]) in str(found[index].error) for index in bad)
    assert all(names([found[i]]) == [CLASSES[i % 3]] for i in range(150) if i not in bad)
    all_bad = predictor.predict([tmp_path, tmp_path / "no.png"])
    assert [prediction.error is not None for prediction in all_bad] == [True, True]


def test_an_answer_that_is_no_number_is_an_error(predictor: Predictor) -> None:
    predictor.model.gain.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    (prediction,) = predictor.predict(np.zeros((8, 8, 3), np.uint8))
    assert prediction.error and "not a number" in prediction.error and prediction.predictions == ()


def test_progress_is_told_to_the_end(predictor: Predictor) -> None:
    told: list[tuple[int, int]] = []
    predictor.predict(
        np.zeros((150, 8, 8, 3), np.uint8), progress=lambda done, total: told.append((done, total))
    )
    assert told == [(64, 150), (128, 150), (150, 150)]
    assert isinstance(predictor.model, Brightness) and predictor.model.batches == [64, 64, 32]


def test_many_pictures_stream_through_bounded_memory(predictor: Predictor) -> None:
    asked = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield np.full((8, 8, 3), COLOURS[CLASSES[asked % 3]], np.uint8)

    threads = threading.active_count()
    stream = predictor.stream(endless())
    for index in range(1, 1001):
        assert next(stream).predictions[0].class_name == CLASSES[index % 3]
        assert asked - index <= 256
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_picture_has_the_same_answer_in_any_company(batch_norm: bool) -> None:
    torch.manual_seed(0)
    model = build_model(VGG(batch_norm=batch_norm), 10)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(
            30
        )  # as sure of itself as a trained one, which shows the differences
    predictor = Predictor(model, Preparation(32, 32, (0.0,) * 3, (255.0,) * 3), [str(i) for i in range(10)])
    pictures = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)

    def probabilities(pictures: np.ndarray) -> np.ndarray:
        found = predictor.predict(pictures, top=10)
        return np.array(
            [[r.probability for r in sorted(p.predictions, key=lambda r: r.index)] for p in found]
        )

    together = probabilities(pictures)
    np.testing.assert_allclose(together.sum(axis=1), 1.0, atol=1e-12)
    assert 0.5 < together.max(axis=1).mean() < 0.999
    alone = np.concatenate([probabilities(pictures[index]) for index in range(0, 100, 9)])
    np.testing.assert_allclose(alone, together[::9], rtol=0, atol=1e-6)
    for start, stop in ((1, 8), (5, 22), (20, 100)):
        np.testing.assert_allclose(
            probabilities(pictures[start:stop]), together[start:stop], rtol=0, atol=1e-6
        )


def test_a_run_directory_is_all_that_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)
    job = training.prepare(RECIPE.model_copy(update={"epochs": 1}), "demo")
    run = training.start(job, tmp_path / "run")
    for _ in training.fit(job, run):
        pass
    monkeypatch.delattr(job_module, "open_source")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    pictures = tiny_source().load("test").images[:70]
    predictor = load_predictor(tmp_path / "moved", weights="last")
    assert predictor.classes == job.source.classes
    assert predictor.preparation == job.stream.preparation
    logits = training.predict_logits(predictor.model, predictor.preparation, torch.from_numpy(pictures))
    expected = torch.softmax(logits.double(), dim=1).numpy()
    found = predictor.predict(pictures, top=1)
    assert [p.predictions[0].index for p in found] == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose([p.predictions[0].probability for p in found], expected.max(axis=1), atol=1e-5)


def test_a_run_must_be_there() -> None:
    with pytest.raises(UserError, match="there is no run at nowhere"):
        load_predictor("nowhere")


def test_a_device_that_is_not_there_is_one_line(demo_run: Run) -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(
            UserError, match=f"device '{device}' cannot be used: .*cpu works everywhere"
        ) as caught:
            load_predictor(demo_run, device=device)
        assert "\n" not in str(caught.value)


def test_the_csv_has_a_row_for_each_class_and_each_error(tmp_path: Path) -> None:
    predictions = [
        Prediction("a, b.png", None, (Ranked(1, "green", 0.75), Ranked(0, "red", 0.25))),
        Prediction("c\udcff.png", "c is empty", ()),
        Prediction(None, None, (Ranked(2, "blue", 1e-12),), unlike_training=True),
    ]
    path = tmp_path / "found.csv"
    write_csv(iter(predictions), path)
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    assert list(csv.reader(text.splitlines())) == [
        ["path", "rank", "class", "probability", "error", "note"],
        ["a, b.png", "1", "green", "0.75", "", ""],
        ["a, b.png", "2", "red", "0.25", "", ""],
        ["c\udcff.png", "", "", "", "c is empty", ""],
        ["", "1", "blue", "1e-12", "", "unlike the training pictures"],
    ]

    def fails() -> Iterator[Prediction]:
        yield predictions[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(fails(), tmp_path / "half.csv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found.csv"]

"""ImageNet weights of VGG16: generated values in exactly the layouts that are published, and Keras's own reading."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cifarlab import Run, UserError, evaluate, features, load_predictor, pretrained, training
from cifarlab.cli import main
from cifarlab.models import build_model
from cifarlab.models.specs import VGG16
from cifarlab.models.vgg16 import BLOCKS, Upsample, base_of
from cifarlab.preparation import Preparation
from cifarlab.recipe import override
from cifarlab.recipes import get_recipe
from tests.tiny import tiny_source, use_source

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]
TINY = {"batch_size": 60, "epochs": 1, "device.threads": 1, "model.dense": 8, "data.validation_images": 24}


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def source(*_: Any, **__: Any) -> Any:
        return tiny_source(images=84)

    use_source(monkeypatch, source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture(scope="module")
def values() -> Arrays:
    """Kernels (3, 3, in, out) and biases (out,), float32, by Keras's names."""
    rng, channels, arrays = np.random.default_rng(0), 3, {}
    for block, (filters, convolutions) in enumerate(BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            scale = (2 / (9 * channels)) ** 0.5
            kernel = scale * rng.standard_normal((3, 3, channels, filters), dtype=np.float32)
            arrays[f"block{block}_conv{index}"] = kernel, 0.1 * rng.standard_normal(filters, dtype=np.float32)
            channels = filters
    return arrays


@pytest.fixture(scope="module")
def keras_file(values: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the official file: a group for each layer, pools too, with the names of Keras 1."""
    path = tmp_path_factory.mktemp("weights") / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    names = []
    for name in values:
        names.append(name)
        if name in ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"):
            names.append(f"{name.partition('_')[0]}_pool")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            group = file.create_group(name)
            weights = [f"{name}_W_1:0", f"{name}_b_1:0"] if name in values else []
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, array in zip(weights, values.get(name, ()), strict=True):
                group.create_dataset(weight, data=array)
    return path


def torchvision_tensors(values: Arrays) -> dict[str, torch.Tensor]:
    """As torchvision's state_dict of VGG16: features counted with ReLU and pools, and a classifier."""
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    tensors = {}
    for place, (kernel, bias) in zip(places, values.values(), strict=True):
        tensors[f"features.{place}.weight"] = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
        tensors[f"features.{place}.bias"] = torch.from_numpy(bias)
    return tensors | {"classifier.0.weight": torch.zeros(4, 4), "classifier.6.bias": torch.zeros(1000)}


def assert_holds(model: nn.Module, values: Arrays) -> None:
    for name, (kernel, bias) in values.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        assert np.array_equal(layer.weight.detach().numpy(), kernel.transpose(3, 2, 0, 1)), name
        assert np.array_equal(layer.bias.detach().numpy(), bias)


def test_the_base_has_the_published_size() -> None:
    base = base_of(build_model(VGG16(), 10))  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in base.parameters()) == 14_714_688
    assert len([layer for layer in base if isinstance(layer, nn.Conv2d)]) == 13


@pytest.mark.parametrize(
    "layout", ["keras", "zip.pth", "old.pth", "torchvision.safetensors", "ours.safetensors"]
)
def test_every_layout_gives_the_same_weights(
    values: Arrays, keras_file: Path, tmp_path: Path, layout: str
) -> None:
    path, tensors = tmp_path / layout, torchvision_tensors(values)
    if layout == "keras":
        path = keras_file
    elif layout.endswith("pth"):
        torch.save(tensors, path, _use_new_zipfile_serialization=layout == "zip.pth")
        if layout == "old.pth":
            assert path.read_bytes().startswith(pretrained.TORCHVISION.signature)
    elif layout == "torchvision.safetensors":
        save_file(tensors, path)
    else:
        kernels = {
            f"{name}.weight": torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
            for name, (kernel, _) in values.items()
        }
        save_file(
            kernels | {f"{name}.bias": torch.from_numpy(bias) for name, (_, bias) in values.items()}, path
        )
    spec = VGG16(weights=str(path), dense=4)
    model = build_model(spec, 3)
    head = model.get_submodule("dense").state_dict()["weight"].clone()
    record = pretrained.begin_with(model, spec)
    assert_holds(model, values)
    assert torch.equal(model.get_submodule("dense").state_dict()["weight"], head)
    assert record == {
        "pretrained": str(path), "path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "new_layers": ["dense", "output"],
    }  # fmt: skip


def test_files_that_are_no_weights_of_vgg16_are_refused(values: Arrays, tmp_path: Path) -> None:
    base = base_of(build_model(VGG16(), 10))  # type: ignore[arg-type]
    tensors = torchvision_tensors(values)
    save_file({name: tensor for name, tensor in tensors.items() if "28" not in name}, tmp_path / "short")
    with pytest.raises(
        UserError, match=r"is not of VGG16: features.28.weight, or block5_conv3.weight, .* is missing"
    ):
        pretrained.read_base(tmp_path / "short", base)
    save_file(tensors | {"features.0.weight": torch.zeros(64, 4, 3, 3)}, tmp_path / "four")
    with pytest.raises(UserError, match="should be 64x3x3x3 and is 64x4x3x3"):
        pretrained.read_base(tmp_path / "four", base)
    for content in (
        b"",
        b"\x80\x02garbage",
        b"PK\x03\x04garbage",
        b"\x10\0\0\0\0\0\0\0{garbage",
        b"<html></html>",
    ):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as"):
            pretrained.read_base(tmp_path / "damaged", base)
    (tmp_path / "damaged").write_bytes(pretrained.HDF5_SIGNATURE + b"garbage")
    with pytest.raises(UserError):
        pretrained.read_base(tmp_path / "damaged", base)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def test_a_pth_that_would_run_code_is_refused(in_empty_folder: Path) -> None:
    torch.save({"features.0.weight": Evil()}, in_empty_folder / "evil.pth")
    with pytest.raises(UserError, match="with tensors alone"):
        pretrained.read_base(in_empty_folder / "evil.pth", base_of(build_model(VGG16(), 10)))  # type: ignore[arg-type]
    assert not (in_empty_folder / "owned").exists()


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
def test_keras_reads_the_same_from_the_file(keras_file: Path, tmp_path: Path) -> None:
    """The features of Keras's VGG16, weights loaded by Keras itself, inputs prepared by Keras itself."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    code = f"""
import numpy as np, keras
model = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
model.load_weights({str(keras_file)!r})
pixels = np.load({str(tmp_path / "pixels.npy")!r}).astype("float32")
for name, inputs in (("rgb", pixels / 255), ("bgr", keras.applications.vgg16.preprocess_input(pixels.copy()))):
    np.save({str(tmp_path)!r} + f"/{{name}}.npy", model.predict(inputs, verbose=0))
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
    )
    spec = VGG16(weights=str(keras_file))
    model = build_model(spec, 10)
    pretrained.begin_with(model, spec)
    front = base_of(model).eval()  # type: ignore[arg-type]
    for name, kind in (("rgb", "scale"), ("bgr", "imagenet-bgr")):
        prepare = Preparation.from_training_images(kind, pixels)
        with torch.no_grad():
            ours = front(prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2))).permute(0, 2, 3, 1).numpy()
        theirs = np.load(tmp_path / f"{name}.npy")
        assert np.abs(theirs).max() > 0
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max(), name


def test_upsampling_is_bilinear_and_makes_room() -> None:
    layer = Upsample(4)
    row = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    assert layer(row)[0, 0, 0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])
    model = build_model(VGG16(upsample=64), 10, (3, 32, 32))
    assert model.get_submodule("dense").state_dict()["weight"].shape == (512, 4 * 512)
    with pytest.raises(UserError, match="at least 32x32 pixels, 28x28 given: set model.upsample"):
        build_model(VGG16(), 10, (3, 28, 28))
    assert build_model(VGG16(upsample=32), 10, (3, 28, 28)) is not None


@pytest.fixture(scope="module")
def frozen_run(keras_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        use_source(patch, lambda *_, **__: tiny_source(images=84))
        changes = {**TINY, "model.weights": str(keras_file), "data.preparation": "imagenet-bgr"}
        changes |= {"optimizer.learning_rate": 1e-4}
        out = tmp_path_factory.mktemp("frozen") / "run"
        return training.train("vgg16-frozen", data="demo", out=out, overrides=changes)


def test_a_frozen_base_keeps_every_byte(frozen_run: Run, values: Arrays) -> None:
    model = frozen_run.load_model("last")
    assert_holds(model, values)
    began = frozen_run.data["initial_weights"]
    assert began["new_layers"] == ["dense", "output"]
    assert frozen_run.metrics[0]["train_loss"] > 0


def test_pictures_are_prepared_alike_in_training_and_after(frozen_run: Run) -> None:
    preparation = frozen_run.load_preparation("last")
    assert (preparation.channel_order, preparation.mean) == ("bgr", (103.939, 116.779, 123.68))
    picture = torch.tensor([255, 0, 10], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    expected = [10 - 103.939, 0 - 116.779, 255 - 123.68]
    assert preparation(picture)[0, :, 0, 0].tolist() == pytest.approx(expected)
    assert evaluate(frozen_run, split="validation").accuracy == frozen_run.metrics[0]["validation_accuracy"]
    images = tiny_source().load("train").images[:2]
    first = load_predictor(frozen_run).predict(images)[0].predictions[0]
    with torch.no_grad():
        logits = frozen_run.load_model("last")(preparation(torch.from_numpy(images).permute(0, 3, 1, 2)))
    assert first.index == logits[0].argmax().item()


def test_a_run_goes_on_and_is_a_base_without_the_file(
    frozen_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "read_base", None)
    monkeypatch.setattr(pretrained, "find", None)
    job, run = training.reopen(frozen_run.path, epochs=2)
    assert features.cacheable_layers(job) > 0
    changes = {**TINY, "data.preparation": "imagenet-bgr"}
    recipe = override(get_recipe("vgg16-finetune"), {**changes, "finetune.init_from": str(run.path)})
    job = training.prepare(recipe, "demo")
    trained = {name.rpartition(".")[0] for name, each in job.model.named_parameters() if each.requires_grad}
    assert trained == {"block5_conv1", "block5_conv2", "block5_conv3", "dense", "output"}
    assert [group["rate_factor"] for group in job.optimizer.param_groups] == [1.0, 1.0, 0.01, 0.01]


def test_without_the_weights_it_is_said_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cifarlab.data.download.make_opener", lambda: Closed())
    assert not pretrained.available(VGG16())
    assert main(["train", "vgg16-frozen", "--data", "demo", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: weights not available: ")
    assert pretrained.KERAS.name in said and pretrained.KERAS.urls[0] in said
    assert "--set model.weights=PATH" in said and "demo works" not in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="is neither a file nor one of imagenet, imagenet-torchvision"):
        pretrained.find(str(tmp_path / "nothing.h5"))
    assert main(["show", "vgg16-finetune"]) == 0
    assert "7,347,210 parameters to train, 7,635,264 frozen" in capsys.readouterr().out


class Closed:
    def open(self, *_: Any, **__: Any) -> Any:
        raise OSError("no network here")


def test_a_file_whose_md5_alone_is_known_is_checked_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pretrained.HDF5_SIGNATURE + b"weights"
    archive = pretrained.Archive(
        "w.h5",
        len(content),
        None,
        ("https://x.example/w.h5",),
        hashlib.md5(content).hexdigest(),
        pretrained.HDF5_SIGNATURE,
    )
    monkeypatch.setitem(pretrained.FILES, "imagenet", archive)
    monkeypatch.setattr("cifarlab.data.download.make_opener", lambda: Closed())
    folder = tmp_path / "xdg" / "cifarlab" / "weights"
    folder.mkdir(parents=True)
    (folder / "w.h5").write_bytes(content)
    assert pretrained.find("imagenet") == folder / "w.h5"
    (folder / "w.h5").write_bytes(content[:-1] + b"!")
    with pytest.raises(UserError, match="could not be fetched"):
        pretrained.find("imagenet")


def test_the_pinned_checksums_are_those_that_are_published() -> None:
    assert pretrained.TORCHVISION.sha256 is not None
    assert pretrained.TORCHVISION.sha256.startswith(pretrained.TORCHVISION.name[6:14])
    if importlib.util.find_spec("keras"):
        source = Path(str(importlib.util.find_spec("keras").origin)).parent / "src/applications/vgg16.py"  # type: ignore[union-attr]
        assert f'file_hash="{pretrained.KERAS.md5}"' in source.read_text()
    assert all(url.startswith("https://") for file in pretrained.FILES.values() for url in file.urls)

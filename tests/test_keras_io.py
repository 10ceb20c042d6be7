"""Files of Keras without Keras: the layouts that Keras 2 wrote, files that are broken or odd, and runs made of them."""

import io
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cifarlab
from cifarlab import Run, UserError
from cifarlab.cli import main
from cifarlab.keras_io import load_keras, save_keras
from cifarlab.models import build_model
from cifarlab.models.specs import VGG
from tests.tiny import RECIPE

SPEC = VGG(widths=(4, 6), dense=8, batch_norm=True)
SHAPE = (3, 16, 16)
# As Keras names them: layer, and for each weight its name and shape
LAYERS = {
    "conv2d_5": {"kernel": (3, 3, 3, 4), "bias": (4,)},
    "batch_normalization_9": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (4,)),
    "conv2d_6": {"kernel": (3, 3, 4, 4), "bias": (4,)},
    "batch_normalization_10": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (4,)),
    "max_pooling2d_3": {},
    "conv2d_7": {"kernel": (3, 3, 4, 6), "bias": (6,)},
    "batch_normalization_11": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (6,)),
    "conv2d_8": {"kernel": (3, 3, 6, 6), "bias": (6,)},
    "batch_normalization_12": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (6,)),
    "max_pooling2d_4": {},
    "flatten_2": {},
    "dense_3": {"kernel": (96, 8), "bias": (8,)},
    "batch_normalization_13": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (8,)),
    "dense_4": {"kernel": (8, 10), "bias": (10,)},
}


def network(spec: VGG = SPEC) -> nn.Module:
    return build_model(spec, 10, SHAPE)


def values() -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return {
        layer: {name: generator.random(shape, np.float32) for name, shape in weights.items()}
        for layer, weights in LAYERS.items()
    }


def write_keras_2(path: Path, whole_model: bool, cut_names: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """What Keras 2.2 to 2.15 wrote with `save` and, without `whole_model`, `save_weights`."""
    content = values()
    with h5py.File(path, "w") as file:
        root = file
        if whole_model:
            file.attrs["model_config"] = b'{"class_name": "Sequential", "config": {"layers": ["left alone"]}}'
            file.attrs["training_config"] = b'{"loss": "categorical_crossentropy"}'
            file.create_dataset("optimizer_weights/SGD/iter:0", data=7)
            root = file.create_group("model_weights")
        names = [name.encode() for name in content]
        for index, part in enumerate([names[:5], names[5:]] if cut_names else [names]):
            root.attrs[f"layer_names{index}" if cut_names else "layer_names"] = part
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        for layer, weights in content.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name in weights]
            for name, value in weights.items():
                group[f"{layer}/{name}:0"] = value
    return content


@pytest.fixture
def keras_2_file(tmp_path: Path) -> Path:
    write_keras_2(tmp_path / "final_model.h5", whole_model=True)
    return tmp_path / "final_model.h5"


@pytest.mark.parametrize("cut_names", [False, True])
@pytest.mark.parametrize("whole_model", [False, True])
def test_keras_2(whole_model, cut_names, tmp_path):
    content = write_keras_2(tmp_path / "any name", whole_model, cut_names)
    model = network()
    read = load_keras(tmp_path / "any name", model)
    assert read.format == "legacy .h5"
    assert read.layers["block2_conv1"] == "conv2d_7" and read.layers["output"] == "dense_4"
    assert read.tensors.keys() == model.state_dict().keys()
    model.load_state_dict(read.tensors)
    layers = dict(model.named_modules())
    kernel = content["conv2d_7"]["kernel"]
    assert layers["block2_conv1"].weight[5, 1, 0, 2].item() == kernel[0, 2, 1, 5]  # out, in, row, column
    assert layers["dense"].weight[3, 50].item() == content["dense_3"]["kernel"][50, 3]
    norm, stored = layers["block2_conv2_bn"], content["batch_normalization_12"]
    for ours, theirs in (
        (norm.weight, "gamma"),
        (norm.bias, "beta"),
        (norm.running_mean, "moving_mean"),
        (norm.running_var, "moving_variance"),
    ):
        np.testing.assert_array_equal(ours.detach().numpy(), stored[theirs])


def test_the_first_files_of_vgg16(tmp_path):
    """The official weights have the layout of Keras 1: no group for a layer's weights, other names of them."""
    with h5py.File(tmp_path / "vgg16.h5", "w") as file:
        file.attrs["layer_names"] = [b"block1_conv1", b"block1_pool", b"block2_conv1"]
        for layer, shape in (
            ("block1_conv1", (3, 3, 3, 4)),
            ("block1_pool", None),
            ("block2_conv1", (3, 3, 4, 5)),
        ):
            group = file.create_group(layer)
            names = [f"{layer}_W_1:0", f"{layer}_b_1:0"] if shape else []
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, its_shape in zip(names, (shape, (shape or ())[-1:]), strict=False):
                group[name] = np.ones(its_shape, np.float32)
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    assert load_keras(tmp_path / "vgg16.h5", base).layers == {"0": "block1_conv1", "2": "block2_conv1"}


@pytest.mark.parametrize("file", ["a.keras", "a.weights.h5", "a.h5"])
def test_there_and_back_is_the_same_and_so_are_the_bytes(file, tmp_path):
    model, path = network(), tmp_path / file
    save_keras(path, model, input_shape=SHAPE)
    read = load_keras(path, network())
    assert all(torch.equal(tensor, read.tensors[name]) for name, tensor in model.state_dict().items())
    first = path.read_bytes()
    save_keras(path, model, input_shape=SHAPE)
    assert path.read_bytes() == first


def test_pairs_by_name_where_all_names_agree(tmp_path):
    """Whatever the order of the file."""
    names = ["dense1", "dense2"]
    with h5py.File(tmp_path / "by-name.h5", "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in reversed(names)]
        for number, name in enumerate(names):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            group[f"{name}/kernel:0"] = np.full((4, 4), number, np.float32)
    layers = {name: nn.Linear(4, 4, bias=False) for name in names}
    read = load_keras(tmp_path / "by-name.h5", nn.ModuleDict(layers))
    assert read.tensors["dense1.weight"].max() == 0.0 and read.tensors["dense2.weight"].min() == 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            VGG(widths=(4, 6), dense=8),
            "it has 4 convolutions, 5 batch norms, 2 dense layers, and this one 4 conv",
        ),
        (
            VGG(widths=(4, 7), dense=8, batch_norm=True),
            "its conv2d_7 has weights of shape 3x3x4x6 6, and block2_conv1",
        ),
        (
            VGG(
                widths=(4, 6), dense=8, batch_norm=True, batch_norm_place="dropouts", pool_dropout=(0.1, 0.1)
            ),
            "it has",
        ),
    ],
)
def test_a_file_of_another_network(spec, message, keras_2_file):
    with pytest.raises(UserError, match=f"final_model.h5 is of another network: {message}"):
        load_keras(keras_2_file, network(spec))


def change(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


KERNEL = "model_weights/dense_4/dense_4/kernel:0"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "damaged"),
        (np.ones((8, 10), np.int8), "holds int8 in dense_4"),
        (np.full((8, 10), np.nan, np.float32), "numbers in dense_4 that are not finite"),
        (h5py.SoftLink("/model_weights/conv2d_5"), "not in the file itself"),
        (h5py.ExternalLink("/etc/passwd", "/"), "not in the file itself"),
        (np.array([b"cos\nsystem"] * 3), "is of another network"),
    ],
    ids=["missing", "int8", "nan", "soft link", "external link", "strings"],
)
def test_odd_content(value, message, keras_2_file):
    change(keras_2_file, KERNEL, value)
    with pytest.raises(UserError, match=message) as caught:
        load_keras(keras_2_file, network())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_a_link_names_is_not_even_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # to open it is to wait for ever
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file.create_group("layers/dense")["vars"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/")
        file["model_weights"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/")

    def too_late(*_: object) -> None:
        raise AssertionError("it was opened")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(20)
    try:
        with pytest.raises(UserError):
            load_keras(tmp_path / "model.weights.h5", network())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_values_in_another_file_are_not_read(keras_2_file, tmp_path):
    (tmp_path / "secret").write_bytes(os.urandom(1000))
    with h5py.File(keras_2_file, "a") as file:
        del file[KERNEL]
        file.create_dataset(KERNEL, (8, 10), "f4", external=[(str(tmp_path / "secret"), 0, 320)])
    with pytest.raises(UserError, match="not in the file itself"):
        load_keras(keras_2_file, network())


def test_a_shape_bomb_is_not_read(keras_2_file):
    with h5py.File(keras_2_file, "a") as file:
        del file[KERNEL]
        file.create_dataset(KERNEL, (1 << 20, 1 << 20), "f8", chunks=(64, 64), compression="gzip")
    with pytest.raises(
        UserError, match="is of another network: its dense_4 has weights of shape 1048576x1048576"
    ):
        load_keras(keras_2_file, network())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a file that Keras saved"),
        (b"PK\x05\x06" + bytes(18), "a zip archive without Keras's model.weights.h5"),
        (b"PK\x03\x04 cut off", "is damaged"),
        (b"\x80\x04\x95 a pickle", "is not a file that Keras saved: it is neither HDF5"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "is damaged"),
    ],
)
def test_other_files(content, message, tmp_path):
    (tmp_path / "file.h5").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_keras(tmp_path / "file.h5", network())


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_keras(tmp_path / "none.h5", network())
    with pytest.raises(UserError, match="is a folder"):
        load_keras(tmp_path, network())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, bytes]:
    folder, model = tmp_path_factory.mktemp("saved"), network()
    for file in ("a.keras", "a.weights.h5", "a.h5"):
        save_keras(folder / file, model, input_shape=SHAPE)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(data=st.data(), file=st.sampled_from(["a.keras", "a.weights.h5", "a.h5"]))
@settings(max_examples=60)
def test_a_file_cut_off_anywhere_is_one_clear_error(data, file, saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / file
    content = saved[file]
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UserError):
        load_keras(path, network())


def repacked(content: bytes, changes: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in [*parts, *changes.items()]:
            archive.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "assets/../../evil", "..\\evil"])
def test_a_zip_with_odd_names(name, saved, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "odd.keras").write_bytes(repacked(saved["a.keras"], {name: b"evil"}))
    with pytest.raises(UserError, match="it has a part named"):
        load_keras(tmp_path / "in" / "odd.keras", network())
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "odd.keras"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_two_weights(saved, tmp_path):
    (tmp_path / "odd.keras").write_bytes(repacked(saved["a.keras"], {"model.weights.h5": b"others"}))
    with pytest.raises(UserError, match="a part named 'model.weights.h5' twice"):
        load_keras(tmp_path / "odd.keras", network())


def test_a_changed_byte_in_a_zip_is_found(saved, tmp_path):
    content = bytearray(saved["a.keras"])
    content[len(content) // 2] ^= 1
    (tmp_path / "odd.keras").write_bytes(content)
    with pytest.raises(UserError, match="is damaged and cannot be read: Bad CRC-32"):
        load_keras(tmp_path / "odd.keras", network())


def test_the_order_of_layers_named_by_hand_is_not_guessed(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for name in ("my_dense", "other_dense"):
            file[f"layers/{name}/vars/0"] = np.ones((4, 4), np.float32)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with pytest.raises(UserError, match="does not say in which order"):
        load_keras(tmp_path / "a.weights.h5", model)


def test_what_keras_has_no_layer_for(tmp_path):
    with pytest.raises(
        UserError, match=r"no layer of Keras is known for 1 \(GELU\): write .weights.h5 instead"
    ):
        save_keras(tmp_path / "a.keras", nn.Sequential(nn.Linear(3, 3), nn.GELU()), input_shape=(3, 1, 1))
    for suffix in (".keras", ".h5", ".weights.h5"):
        with pytest.raises(UserError, match=r"files is known for 0 \(PReLU\)$"):
            save_keras(tmp_path / f"a{suffix}", nn.Sequential(nn.PReLU()), input_shape=(3, 1, 1))
    with pytest.raises(UserError, match="should end in .keras, .weights.h5 or .h5"):
        save_keras(tmp_path / "a.pt", network(), input_shape=SHAPE)
    assert not list(tmp_path.iterdir())


# Runs


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A file for the network of the tiny recipe."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("exported") / "theirs.h5"
    save_keras(path, build_model(RECIPE.model, 10), input_shape=(3, 32, 32))
    return path


SMALL = {"data.validation_images": 4840, "epochs": 2}


@pytest.fixture
def imported(exported, tmp_path) -> Run:
    return cifarlab.import_keras(exported, RECIPE, data="demo", out=tmp_path / "run", overrides=SMALL)


def test_an_imported_run_evaluates_and_predicts(imported, exported):
    weights = load_keras(exported, imported.load_model()).tensors
    assert all(torch.equal(weights[name], tensor) for name, tensor in imported.load_weights()[0].items())
    assert imported.imported is not None
    assert (
        imported.imported["file"] == "theirs.h5"
        and imported.imported["sha256"] == load_keras(exported, imported.load_model()).sha256
    )
    assert imported.metrics == [] and not imported.is_complete and imported.default_weights == "last"
    assert cifarlab.evaluate(imported, split="validation").n == 4840
    picture = np.zeros((32, 32, 3), np.uint8)
    assert cifarlab.load_predictor(imported).predict([picture])[0].predictions


def files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.glob("*.safetensors")}


def test_an_imported_run_trains_on_and_resumes_exactly(imported, tmp_path):
    shutil.copytree(imported.path, tmp_path / "twin")
    first = imported.load_weights()[0]
    whole = cifarlab.resume(imported)
    cut = Run(tmp_path / "twin")
    cut.replan(cut.recipe.model_copy(update={"epochs": 1}))
    cut = cifarlab.resume(cifarlab.resume(cut), epochs=2)
    assert files(cut) == files(whole) and whole.is_complete and whole.default_weights == "best"
    fresh = cifarlab.train(RECIPE, data="demo", out=tmp_path / "fresh", overrides=SMALL)
    assert files(fresh) != files(whole)  # the imported weights are what it began with
    assert not torch.equal(first["dense.weight"], whole.load_weights("last")[0]["dense.weight"])


def test_a_mistake_leaves_no_run(exported, tmp_path):
    wider = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"dense": 17})})
    with pytest.raises(UserError, match="is of another network"):
        cifarlab.import_keras(exported, wider, data="demo", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_commands(demo_run, tmp_path, capsys, small_settings):
    file, out = tmp_path / "demo.keras", tmp_path / "run"
    assert main(["export-keras", str(demo_run.path), "--out", str(file), "--weights", "last", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights"] == "last" and told["preparation"]["mean"][0] > 1.0
    command = ["import-keras", str(file), "--recipe", "demo", "--data", "demo", "--out", str(out), "--json"]
    assert main(command + small_settings) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == ".keras" and told["layers"]["output"] == "output"
    again, before = Run(out).load_weights()[0], demo_run.load_weights("last")[0]
    floats = [name for name in before if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(again[name], before[name]) for name in floats)
    assert main(["evaluate", str(out), "--split", "validation"]) == 0
    assert "its weights were imported from demo.keras, not trained since" in capsys.readouterr().err


def test_mistakes_on_the_command_line(tmp_path, capsys):
    assert main(["import-keras", str(tmp_path / "none.h5"), "--recipe", "vgg3"]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert main(["import-keras", "none.h5", "--recipe", "vgg9"]) == 2
    assert "did you mean" in capsys.readouterr().err

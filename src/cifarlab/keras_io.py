"""Weights in Keras's files, in and out: legacy `.h5`, and `.weights.h5` and `.keras` of Keras 3.

Only numbers and names are read, with h5py and zipfile: nothing in a file is executed, no configuration is turned into
code, and no archive is extracted. The layouts are those of `legacy_h5_format.py` and `saving_lib.py` in Keras 3,
which are Keras 2's and Keras 3's own.

Layers are paired by type and order, since Keras makes up the names of most: kernels go from (height, width, in, out)
and (in, out) to PyTorch's (out, in, height, width) and (out, in).
"""

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarlab import __version__
from cifarlab.data import Source
from cifarlab.errors import UserError
from cifarlab.files import write_atomic
from cifarlab.job import new_average, prepare
from cifarlab.models.layers import Dropout, Flatten, SameConv2d
from cifarlab.models.vgg16 import Upsample
from cifarlab.recipe import Recipe, override
from cifarlab.recipes import get_recipe
from cifarlab.run import Run, Weights, check_out
from cifarlab.training import start_imported

if TYPE_CHECKING:
    import h5py

WEIGHTS_IN_ZIP = "model.weights.h5"
SUFFIXES = (".keras", ".weights.h5", ".h5")
HDF5_SIGNATURE, ZIP_SIGNATURE = b"\x89HDF\r\n\x1a\n", b"PK"
DEEPEST_NESTING = 4  # models within models
LARGEST_PART = (
    16  # of a .keras file, in sizes of the network: weights, Adam's two averages, all in float64, and air
)
CONVOLUTION, DENSE, BATCH_NORM = "convolution", "dense layer", "batch norm"
Weighted = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class KerasWeights:
    """What a file holds for a network.

    Attributes:
        tensors: a complete state_dict of the network, in its dtype, contiguous.
        layers: for each layer of the network its name, and the name of the file's layer that it comes from.
        format: "legacy .h5", ".weights.h5" or ".keras".
        sha256: of the file's bytes, in hex.
    """

    tensors: dict[str, Tensor]
    layers: dict[str, str]
    format: str
    sha256: str


@dataclass(frozen=True)
class _Layer:
    """A layer in a file that has weights. Their order is Keras's: kernel, bias; gamma, beta, mean, variance."""

    name: str
    weights: list["h5py.Dataset"]
    place: str = ""  # the group it is in, where the order is told by names alone

    @property
    def kind(self) -> str:
        return {4: CONVOLUTION, 2: DENSE, 1: BATCH_NORM}.get(self.weights[0].ndim, "other layer")


# In


def load_keras(path: str | Path, model: nn.Module) -> KerasWeights:
    """The weights in a file that Keras saved, for a network with the same layers; `model` is not changed.

    The format is told by the file's content, whatever its name.

    Raises:
        UserError: when the file is missing, damaged, not Keras's, or of another network.
    """
    path = Path(path)
    return _load(_read_bytes(path), path, model)


def _load(content: bytes, path: Path, model: nn.Module) -> KerasWeights:
    import h5py

    with _readable(path):
        zipped = content.startswith(ZIP_SIGNATURE)
        hdf5 = _weights_in_zip(content, path, model) if zipped else content
        if not hdf5.startswith(HDF5_SIGNATURE):
            raise UserError(f"{path} is not a file that Keras saved: it is neither HDF5 (.h5) nor .keras")
        with h5py.File(io.BytesIO(hdf5), "r") as file:
            legacy, layers = _layers(file)
            pairs = _pair(layers, model, path)
            tensors = dict(model.state_dict())
            for name, module, layer in pairs:
                tensors |= {
                    f"{name}.{key}": value for key, value in _tensors(layer, name, module, path).items()
                }
    return KerasWeights(
        tensors={name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()},
        layers={name: layer.name for name, _, layer in pairs},
        format="legacy .h5" if legacy else ".keras" if zipped else ".weights.h5",
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a folder: one file is wanted, {' or '.join(SUFFIXES)}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever h5py and zipfile say about a broken file, in one line."""
    broken = (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError, EOFError)
    try:
        yield
    except (*broken, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"{path} is damaged and cannot be read: {reason[0][:200]}") from None


def _weights_in_zip(content: bytes, path: Path, model: nn.Module) -> bytes:
    """The one member that is wanted, checked against its CRC."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = archive.namelist()
    odd = [name for name in names if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name)]
    if odd or names.count(WEIGHTS_IN_ZIP) > 1:
        raise UserError(
            f"{path} is not a file that Keras saved: it has a part named {(odd or [WEIGHTS_IN_ZIP])[0]!r}"
            f"{'' if odd else ' twice'}"
        )
    if WEIGHTS_IN_ZIP not in names:
        raise UserError(f"{path} is a zip archive without Keras's {WEIGHTS_IN_ZIP}")
    needed = sum(tensor.numel() * 8 for tensor in model.state_dict().values())
    size = archive.getinfo(WEIGHTS_IN_ZIP).file_size
    if size > LARGEST_PART * needed + (1 << 20):
        raise UserError(
            f"{path} is of another network: its weights are {size:,} bytes, too many for this one"
        )
    return archive.read(WEIGHTS_IN_ZIP)


def _layers(file: "h5py.File") -> tuple[bool, list[_Layer]]:
    """Whether the layout is the legacy one, and the layers that have weights."""
    root = _member(file, "model_weights") if _has(file, "model_weights") else file
    if "layer_names" in root.attrs or "layer_names0" in root.attrs:
        return True, _legacy_layers(root)
    return False, list(_layers_by_class(file))


def _has(group: Any, name: str) -> bool:
    """Whether `group` has a member of that name in its own file. `in` would follow a link and open what it names."""
    from h5py import Group, h5l  # type: ignore[attr-defined]

    if not isinstance(group, Group):
        return False
    links, encoded = group.id.links, name.encode()
    return links.exists(encoded) and links.get_info(encoded).type == h5l.TYPE_HARD


def _member(group: "h5py.Group", path: str) -> Any:
    """What lies at `path`, in this file: never a link, nor values kept in another file."""
    import h5py

    found: Any = group
    for name in path.split("/"):
        if not _has(found, name):
            raise ValueError(f"'{name}' is not in the file itself")
        found = found[name]
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise ValueError(f"the values of '{path}' are not in the file itself")
    return found


def _legacy_layers(root: "h5py.Group") -> list[_Layer]:
    """In the order of the network. A model that is a layer of it has all its own layers' weights in one group."""
    layers: list[_Layer] = []
    for name in _names(root, "layer_names"):
        group, parts = _member(root, name), dict[str, _Layer]()
        for weight in _names(group, "weight_names"):
            part = weight.rpartition("/")[0] or name
            parts.setdefault(part, _Layer(part.rpartition("/")[2], [])).weights.append(_member(group, weight))
        layers += parts.values()
    return layers


def _names(group: "h5py.Group", attribute: str) -> list[str]:
    """A list of names, which Keras cuts in pieces (`layer_names0`, ...) where it is long."""
    pieces = [attribute] if attribute in group.attrs else []
    while not pieces or pieces[0] != attribute:
        piece = f"{attribute}{len(pieces)}"
        if piece not in group.attrs:
            break
        pieces.append(piece)
    names = [name for piece in pieces for name in np.asarray(group.attrs[piece]).ravel()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _layers_by_class(group: "h5py.Group", place: str = "", depth: int = 0) -> Iterator[_Layer]:
    """Keras 3 names a layer's group by its class and counts: conv2d, conv2d_1, ...; the order is within each class."""
    for container in ("layers", "_layer_checkpoint_dependencies"):  # the latter: Keras 2.12
        if not _has(group, container) or depth > DEEPEST_NESTING:
            continue
        layers = _member(group, container)
        for name in sorted(layers, key=_class_and_number):
            layer = _member(layers, name)
            stored: Any = _member(layer, "vars") if _has(layer, "vars") else ()
            if len(stored):
                weights = [_member(stored, str(index)) for index in range(len(stored))]
                yield _Layer(
                    str(stored.attrs.get("name", name)), weights, f"{place}/{_class_and_number(name)[0]}"
                )
            yield from _layers_by_class(layer, f"{place}/{name}", depth + 1)


def _class_and_number(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (name, 0)


# Which layer of the file is which of the network


def weighted_layers(model: nn.Module) -> list[tuple[str, Weighted]]:
    """The layers of `model` that have weights, by name, in its order.

    Raises:
        UserError: when there is one that no layer of Keras is known for here.
    """
    found: list[tuple[str, Weighted]] = []
    for name, module in model.named_modules():
        plain = not isinstance(module, nn.Conv2d) or (module.groups == 1 and module.dilation == (1, 1))
        if isinstance(module, Weighted) and plain:
            found.append((name, module))
        elif any(True for _ in module.parameters(recurse=False)):
            raise UserError(f"no layer of Keras's files is known for {name} ({type(module).__name__})")
    return found


def _pair(layers: list[_Layer], model: nn.Module, path: Path) -> list[tuple[str, Weighted, _Layer]]:
    ours = weighted_layers(model)
    kinds = Counter(_kind(module) for _, module in ours)
    theirs = Counter(layer.kind for layer in layers)
    if kinds != theirs:
        raise UserError(
            f"{path} is of another network: it has {_counts(theirs)}, and this one {_counts(kinds)}"
        )
    by_name = {layer.name: layer for layer in layers}
    names = [_keras_name(name) for name, _ in ours]
    if len(by_name) == len(layers) and by_name.keys() == set(names):
        return [(name, module, by_name[_keras_name(name)]) for name, module in ours]
    for kind in kinds:
        places = {layer.place for layer in layers if layer.kind == kind}
        if len(places) > 1:
            raise UserError(
                f"{path} does not say in which order its layers follow each other ({', '.join(sorted(places))}):"
                " save it from Keras as legacy .h5, which does"
            )
    in_order = {kind: iter([layer for layer in layers if layer.kind == kind]) for kind in kinds}
    pairs = [(name, module, next(in_order[_kind(module)])) for name, module in ours]
    if layers[0].place == "" and [layer for *_, layer in pairs] != layers:
        kinds_in_order = ", ".join(layer.kind for layer in layers)
        raise UserError(f"{path} is of another network: its layers are in the order {kinds_in_order}")
    return pairs


def _kind(module: Weighted) -> str:
    if isinstance(module, nn.Conv2d):
        return CONVOLUTION
    return DENSE if isinstance(module, nn.Linear) else BATCH_NORM


def _counts(kinds: Counter[str]) -> str:
    plural = {BATCH_NORM: "batch norms"}
    return ", ".join(f"{n} {kind if n == 1 else plural.get(kind, f'{kind}s')}" for kind, n in kinds.items())


def _keras_name(name: str) -> str:
    return name.replace(".", "_")


# Layouts


def _weight_names(module: Weighted) -> dict[str, str]:
    """Keras's name of each weight by PyTorch's, in Keras's order."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        statistics = {"running_mean": "moving_mean", "running_var": "moving_variance"}
        return {"weight": "gamma", "bias": "beta", **statistics}
    return {"weight": "kernel"} if module.bias is None else {"weight": "kernel", "bias": "bias"}


def _to_keras(value: Tensor) -> Tensor:
    """(out, in, height, width) -> (height, width, in, out); (out, in) -> (in, out)."""
    return value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T if value.ndim == 2 else value


def _from_keras(value: Tensor) -> Tensor:
    return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else value


def _tensors(layer: _Layer, name: str, module: Weighted, path: Path) -> dict[str, Tensor]:
    """The layer's weights by PyTorch's names. Shapes are compared before any value is read."""
    wanted = {key: getattr(module, key) for key in _weight_names(module)}
    shapes = [tuple(_to_keras(value).shape) for value in wanted.values()]
    found = [tuple(weight.shape) for weight in layer.weights]
    if found != shapes:
        raise UserError(
            f"{path} is of another network: its {layer.name} has weights of shape {_shapes(found)}, and {name} takes"
            f" {_shapes(shapes)}"
        )
    tensors: dict[str, Tensor] = {}
    for (key, value), stored in zip(wanted.items(), layer.weights, strict=True):
        if stored.dtype.kind != "f":
            raise UserError(
                f"{path} holds {stored.dtype} in {layer.name}: weights as floating-point numbers are wanted"
            )
        numbers = torch.from_numpy(np.asarray(stored[()], np.float64))
        if not numbers.isfinite().all():
            raise UserError(f"{path} has numbers in {layer.name} that are not finite: its training diverged")
        tensors[key] = _from_keras(numbers).to(value.dtype)
    return tensors


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return " ".join("x".join(map(str, shape)) for shape in shapes)


# Out


def save_keras(
    path: str | Path, model: nn.Module, *, input_shape: tuple[int, int, int], name: str = "model"
) -> None:
    """Write the network for Keras 3; the end of the name says how.

    `.keras` and `.h5` are whole models for `keras.models.load_model`, with softmax on the last layer; `.weights.h5`
    is for `load_weights` of a Keras model with the same layers, as `.h5` is too. The network takes prepared pictures,
    (N, height, width, channels). The same weights give the same bytes.

    Args:
        model: a sequence of layers; its weights are written in their dtype.
        input_shape: (C, H, W).
        name: of the Keras model.

    Raises:
        UserError: for another ending, a network that Keras has no layers for, or a file that cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    weighted_layers(model)  # first what no format of Keras's has room for
    if path.name.endswith(".weights.h5"):
        write_atomic(path, _weights_hdf5(model))
    elif path.suffix == ".keras":
        write_atomic(path, _zip_of(model, input_shape, name))
    else:
        write_atomic(path, _legacy_hdf5(model, input_shape, name))


def check_suffix(path: Path) -> None:
    """Raises UserError when the name does not end like one of Keras's files."""
    if not path.name.endswith(SUFFIXES):
        raise UserError(
            f"{path} should end in .keras, .weights.h5 or .h5: the ending says which of Keras's formats"
        )


def _weights_hdf5(model: nn.Module) -> bytes:
    import h5py

    content, counted = io.BytesIO(), Counter[str]()
    with h5py.File(content, "w") as file:
        for name, module in weighted_layers(model):
            stem = {CONVOLUTION: "conv2d", DENSE: "dense", BATCH_NORM: "batch_normalization"}[_kind(module)]
            number = counted[stem]
            counted[stem] += 1
            group = file.create_group(f"layers/{stem}_{number}/vars" if number else f"layers/{stem}/vars")
            group.attrs["name"] = _keras_name(name)
            for index, value in enumerate(_arrays(module).values()):
                group.create_dataset(str(index), data=value)
    return content.getvalue()


def _arrays(module: Weighted) -> dict[str, Any]:
    names = _weight_names(module)
    return {
        keras: _to_keras(getattr(module, ours).detach().cpu()).contiguous().numpy()
        for ours, keras in names.items()
    }


def _zip_of(model: nn.Module, input_shape: tuple[int, int, int], name: str) -> bytes:
    config = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {
            "name": name,
            "layers": [
                {"module": "keras.layers", **layer, "registered_name": None}
                for layer in _layer_configs(model, input_shape)
            ],
        },
        "registered_name": None,
    }
    parts = {
        "metadata.json": json.dumps({"keras_version": "3.0.0"}).encode(),
        "config.json": json.dumps(config).encode(),
        WEIGHTS_IN_ZIP: _weights_hdf5(model),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for part, data in parts.items():
            archive.writestr(zipfile.ZipInfo(part), data)  # a date of its own, always the same
    return content.getvalue()


def _legacy_hdf5(model: nn.Module, input_shape: tuple[int, int, int], name: str) -> bytes:
    import h5py

    config = {
        "class_name": "Sequential",
        "config": {"name": name, "layers": _layer_configs(model, input_shape)},
    }
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        root = file.create_group("model_weights")
        layers = [(_keras_name(name), module) for name, module in weighted_layers(model)]
        root.attrs["layer_names"] = [name.encode() for name, _ in layers]
        for each in (file, root):
            each.attrs["backend"], each.attrs["keras_version"] = "tensorflow", "2.15.0"
        for name, module in layers:
            group, arrays = root.create_group(name), _arrays(module)
            group.attrs["weight_names"] = [f"{name}/{weight}:0".encode() for weight in arrays]
            for weight, value in arrays.items():
                group.create_dataset(f"{name}/{weight}:0", data=value)
    return content.getvalue()


def _layer_configs(model: nn.Module, input_shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Every layer as Keras's class name and settings, the input first."""
    channels, height, width = input_shape
    first = {"name": "input", "batch_shape": [None, height, width, channels], "dtype": "float32"}
    layers = [{"class_name": "InputLayer", "config": first}]
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    for name, module in leaves:
        kind, settings = _layer_config(name, module)
        if module is leaves[-1][1] and isinstance(module, nn.Linear):
            settings["activation"] = "softmax"
        layers.append({"class_name": kind, "config": {"name": _keras_name(name), **settings}})
    return layers


def _layer_config(name: str, module: nn.Module) -> tuple[str, dict[str, Any]]:
    match module:
        case nn.Conv2d():
            settings = {"filters": module.out_channels, "padding": _padding(name, module)}
            settings |= {"kernel_size": list(module.kernel_size), "strides": list(module.stride)}
            return "Conv2D", settings | {"use_bias": module.bias is not None}
        case nn.Linear():
            return "Dense", {"units": module.out_features, "use_bias": module.bias is not None}
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            assert module.momentum is not None
            return "BatchNormalization", {
                "axis": -1,
                "momentum": 1.0 - module.momentum,
                "epsilon": module.eps,
            }
        case nn.MaxPool2d():
            return "MaxPooling2D", {"pool_size": module.kernel_size, "strides": module.stride}
        case nn.ReLU():
            return "ReLU", {}
        case nn.ELU():
            return "ELU", {"alpha": module.alpha}
        case Dropout():
            return "Dropout", {"rate": module.rate}
        case Flatten():
            return "Flatten", {}
        case Upsample():
            side = module.size
            return "Resizing", {"height": side, "width": side, "interpolation": "bilinear"}
    raise UserError(
        f"no layer of Keras is known for {name} ({type(module).__name__}): write .weights.h5 instead"
    )


def _padding(name: str, module: nn.Conv2d) -> str:
    if isinstance(module, SameConv2d):
        return "same"
    if module.padding == (0, 0):
        return "valid"
    same = [size // 2 for size in module.kernel_size]
    if list(module.padding) != same or module.stride != (1, 1) or any(s % 2 == 0 for s in module.kernel_size):
        raise UserError(f"Keras has no padding like that of {name}: write .weights.h5 instead")
    return "same"


# Runs


def import_keras(
    file: str | Path,
    recipe: str | Recipe,
    *,
    data: str | Path | Source = "cifar10",
    out: str | Path | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
) -> Run:
    """A run with the weights in a file that Keras saved: it evaluates, predicts, and `resume` trains it on.

    The run stands before its first epoch: steps, schedule and optimiser start anew, as a file does not say where
    they stood. `Run.imported` says where the weights come from.

    Args:
        file: legacy `.h5`, `.weights.h5` or `.keras`, of the recipe's network.
        recipe: a name or a `Recipe`: the network, and the preparation of the pictures.
        data: what the run is judged on, and trained on by `resume`, as for `train`.
        out: the run directory to make; by default `runs/<recipe>-s<seed>-<n>`.
        seed: of data order, augmentation and dropout, should the run be trained on.
        overrides: recipe fields by dotted name.
        data_dir: the folder of CIFAR-10's batches, or its parent.

    Raises:
        UserError: as `load_keras` does, and for any mistake in the other arguments, before anything is written.
    """
    path, out = Path(file), None if out is None else Path(out)
    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = override(chosen, {"seed": seed, **(overrides or {})})
    content = _read_bytes(path)
    check_out(out)
    job = prepare(chosen, data, data_dir, begin=False)
    weights = _load(content, path, job.model)
    job.model.load_state_dict(weights.tensors)
    record = {
        "file": path.name,
        "sha256": weights.sha256,
        "format": weights.format,
        "layers": weights.layers,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }
    average = new_average(chosen, job.model)  # a copy: of the weights as they are now
    return start_imported(replace(job, average=average, initial_weights=record), out)


def export_keras(run: Run | str | Path, out: str | Path, *, weights: Weights | None = None) -> None:
    """Write a run's weights for Keras 3: `save_keras` says which formats there are.

    Args:
        run: a run or its directory.
        out: the file to write; its ending says the format.
        weights: "best" or "last"; None for those that the run's recipe names.

    Raises:
        UserError: as `save_keras` does, and when the run has no such weights.
    """
    run, path = run if isinstance(run, Run) else Run(run), Path(out)
    check_suffix(path)
    model = run.load_model(weights)
    save_keras(path, model, input_shape=tuple(run.data["input_shape"]), name=run.recipe.name)

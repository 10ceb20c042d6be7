"""ImageNet weights of VGG16's convolutional base: where they come from, and how their files are read.

Three layouts: Keras's legacy HDF5 without the top, PyTorch's `.pth` as torchvision publishes it, and safetensors with
torchvision's names or ours. Nothing in a file is executed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarlab.data.cifar import Archive
from cifarlab.errors import UserError
from cifarlab.files import cache_dir, sha256_of
from cifarlab.models.specs import VGG16, ModelSpec
from cifarlab.models.vgg16 import base_of

Progress = Callable[[int, int | None, str], None]

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
PICKLE_SIGNATURE = b"\x80\x02"
KERAS = Archive(
    name="vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    size_bytes=58_889_256,
    sha256=None,  # none is published
    md5="6d6bbae143d832006294945121d1f1fc",  # keras/src/applications/vgg16.py
    urls=(
        "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "https://github.com/fchollet/deep-learning-models/releases/download/v0.1/"
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    signature=HDF5_SIGNATURE,
)
TORCHVISION = Archive(
    name="vgg16-397923af.pth",  # the name carries the beginning of the SHA-256
    size_bytes=553_433_881,
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    urls=("https://download.pytorch.org/models/vgg16-397923af.pth",),
    signature=PICKLE_SIGNATURE,
)
FILES = {"imagenet": KERAS, "imagenet-torchvision": TORCHVISION}


def wanted(spec: ModelSpec) -> str | None:
    """The weights that a network of `spec` begins with: a name in `FILES`, or a path; None for random ones."""
    return spec.weights if isinstance(spec, VGG16) else None


def available(spec: ModelSpec) -> bool:
    """Whether the weights that `spec` names are on this machine, or it names none."""
    weights = wanted(spec)
    return weights is None or _own_path(weights).is_file()


def find(weights: str, progress: Progress | None = None) -> Path:
    """The file of `weights`, fetched into the user's cache if need be.

    `progress(done_bytes, total_bytes, host)` is called as bytes arrive.

    Raises:
        UserError: when it is not there and cannot be fetched, with where to get it.
    """
    if weights not in FILES:
        path = _own_path(weights)
        if not path.is_file():
            raise UserError(
                f"model.weights={weights} is neither a file nor one of {', '.join(FILES)};"
                " --set model.weights=none begins with random values"
            )
        return path
    from cifarlab.data.download import fetch

    remedy = "or give its path with --set model.weights=PATH"
    try:
        return fetch("the ImageNet file of VGG16", [FILES[weights]], _folder(), progress, remedy=remedy)
    except UserError as error:
        raise UserError(f"weights not available: {error}") from None


def begin_with(model: nn.Module, spec: ModelSpec) -> dict[str, Any] | None:
    """Give the base of `model` the weights that `spec` names; where they came from, None where it names none.

    Raises:
        UserError: as `find` and `read_base` do.
    """
    weights = wanted(spec)
    if weights is None:
        return None
    path = find(weights)
    assert isinstance(model, nn.Sequential)
    base = base_of(model)
    base.load_state_dict(read_base(path, base))
    inside = dict(base.named_children())
    new = [name for name, layer in model.named_children() if list(layer.parameters()) and name not in inside]
    return {"pretrained": weights, "path": str(path), "sha256": sha256_of(path), "new_layers": new}


def read_base(path: Path, base: nn.Sequential) -> dict[str, Tensor]:
    """The weights in a file as a state_dict of `base`; layers of the file that come after it are left out.

    Raises:
        UserError: when the file is damaged, of no known layout, or of another network.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(HDF5_SIGNATURE):
        from cifarlab.keras_io import load_keras

        return load_keras(path, base).tensors
    return _named_as(base, _safetensors(path) if head[8:9] == b"{" else _pth(path), path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from None


def _pth(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a damaged or forged file leads to
        raise UserError(
            f"{path} cannot be read as weights: it is neither Keras's .h5, nor PyTorch's .pth with tensors alone,"
            " nor safetensors"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no weights by name")
    return content


def _named_as(base: nn.Sequential, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`tensors` under the names of `base`: torchvision counts every convolution, ReLU and pool."""
    ours, place = {}, 0
    for name, layer in base.named_children():
        if isinstance(layer, nn.Conv2d):
            ours[name] = f"features.{place}"
            place += 2
        elif isinstance(layer, nn.MaxPool2d):
            place += 1
    result = {}
    for name, theirs in ours.items():
        for key, expected in base.get_submodule(name).state_dict().items():
            tensor = tensors.get(f"{theirs}.{key}", tensors.get(f"{name}.{key}"))
            if not isinstance(tensor, Tensor) or tensor.shape != expected.shape:
                found = "x".join(map(str, tensor.shape)) if isinstance(tensor, Tensor) else "missing"
                raise UserError(
                    f"{path} is not of VGG16: {theirs}.{key}, or {name}.{key}, should be"
                    f" {'x'.join(map(str, expected.shape))} and is {found}"
                )
            result[f"{name}.{key}"] = tensor.to(expected.dtype)
    return result


def _own_path(weights: str) -> Path:
    return _folder() / FILES[weights].name if weights in FILES else Path(weights).expanduser()


def _folder() -> Path:
    return cache_dir() / "weights"

"""Where our kernels are used: within `own_kernels`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F

from cifarlab.kernels.compiled import kernels_here
from cifarlab.kernels.convolution import convolve, own_conv2d, own_convolve
from cifarlab.kernels.dense_layer import dense, own_dense, own_linear
from cifarlab.kernels.normalisation import normalise, own_batch_norm, own_normalise
from cifarlab.kernels.pointwise import own_elu
from cifarlab.kernels.pooling import drop_and_pool, own_drop_and_pool, own_max_pool2d
from cifarlab.kernels.replacing import Replacements, Replacing

# Each takes the arguments of the other, and returns None where they do not suit it.
OWN: Replacements = {
    torch.conv2d: own_conv2d,
    convolve: own_convolve,
    F.linear: own_linear,
    dense: own_dense,
    F.batch_norm: own_batch_norm,
    normalise: own_normalise,
    F.elu: own_elu,
    F.max_pool2d: own_max_pool2d,
    drop_and_pool: own_drop_and_pool,
}


def own_kernels(device: torch.device, *, wanted: bool = True) -> AbstractContextManager[Any]:
    """Within it, operations on `device` that gain by our kernels are computed by them, and so are gradients."""
    return Replacing(OWN) if wanted and device.type == "cpu" and kernels_here() else nullcontext()

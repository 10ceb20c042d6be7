"""Where our kernels are used: within `own_kernels`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from cifarlab.kernels.again import computed_again
from cifarlab.kernels.compiled import kernels_here
from cifarlab.kernels.convolution import convolve, own_conv2d, own_convolve
from cifarlab.kernels.dense_layer import dense, own_dense, own_linear
from cifarlab.kernels.normalisation import (
    convolve_and_normalise,
    normalise,
    own_batch_norm,
    own_convolve_and_normalise,
    own_normalise,
)
from cifarlab.kernels.pointwise import own_elu
from cifarlab.kernels.pooling import drop_and_pool, own_drop_and_pool, own_max_pool2d
from cifarlab.kernels.replacing import Replacing
from cifarlab.kernels.whitening import own_whiten, whiten

# Each takes the arguments of the other, and returns None where they do not suit it.
OWN: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: own_conv2d,
    convolve: own_convolve,
    F.linear: own_linear,
    dense: own_dense,
    F.batch_norm: own_batch_norm,
    normalise: own_normalise,
    convolve_and_normalise: own_convolve_and_normalise,
    F.elu: own_elu,
    F.max_pool2d: own_max_pool2d,
    drop_and_pool: own_drop_and_pool,
    whiten: own_whiten,
}


def run_operations(input: Tensor, operations: Sequence[tuple[Any, ...]]) -> Tensor:
    """Functions of one tensor, each with the arguments after it, one after the other.

    Within `own_kernels` each of ours (`convolve`, `dense`, ...) is one operation, where that gains. PyTorch asks once
    for all of them what is in place of what.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(run_operations, (input,), input, operations)
    for operation, *arguments in operations:
        input = operation(input, *arguments)
    return input


def _own_operations(input: Tensor, operations: Sequence[tuple[Any, ...]]) -> Tensor:
    for operation, *arguments in operations:
        with computed_again(input):
            input = _own_operation(operation, input, *arguments)
    return input


def _own_operation(operation: Callable[..., Tensor], input: Tensor, *arguments: Any) -> Tensor:
    if (replacement := OWN.get(operation)) is None:
        with Replacing(OWN):
            return operation(input, *arguments)
    result = replacement(input, *arguments)
    return operation(input, *arguments) if result is None else result


OWN[run_operations] = _own_operations


def own_kernels(device: torch.device, *, wanted: bool = True) -> AbstractContextManager[Any]:
    """Within it, operations on `device` that gain by our kernels are computed by them, and so are gradients."""
    return Replacing(OWN) if wanted and device.type == "cpu" and kernels_here() else nullcontext()

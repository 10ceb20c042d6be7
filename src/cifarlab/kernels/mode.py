"""Where our kernels are used: within `own_kernels`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cifarlab.kernels.compiled import kernels_here
from cifarlab.kernels.convolution import convolve, own_conv2d, own_convolve
from cifarlab.kernels.pointwise import own_elu

# Each takes the arguments of the other, and returns None where they do not suit it.
OWN: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: own_conv2d,
    convolve: own_convolve,
    F.elu: own_elu,
}


def own_kernels(device: torch.device, *, wanted: bool = True) -> AbstractContextManager[Any]:
    """Within it, operations on `device` that gain by our kernels are computed by them, and so are gradients."""
    return _OwnKernels() if wanted and device.type == "cpu" and kernels_here() else nullcontext()


class _OwnKernels(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        own = OWN.get(func)
        result = None if own is None else own(*args, **kwargs or {})
        return func(*args, **kwargs or {}) if result is None else result

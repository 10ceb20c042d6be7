"""Large outputs that cost little are computed again for a gradient, in place of being kept until then.

As PyTorch does for what it keeps, a gradient is refused where one of the tensors was changed in place meanwhile.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

# Of an output: smaller ones are kept, which saves another pass over what they come from.
LEAST_BYTES = 64 << 20


class _Again(NamedTuple):
    compute: Callable[[], Tensor]
    version: int  # of the output that it gives


def say_how(output: Tensor, again: Callable[..., Tensor], values: Tensor, *others: Any) -> Tensor:
    """`output`, which is `again(values, *others)`, as large ones say."""
    if output.nbytes < LEAST_BYTES or not torch.is_grad_enabled():
        return output
    constant = values.detach()
    versions = [(each, each._version) for each in (constant, *others) if isinstance(each, Tensor)]

    def compute() -> Tensor:
        for each, version in versions:
            _check_unchanged(each, version)
        return again(constant, *others)

    output.again = _Again(compute, output._version)  # type: ignore[attr-defined]
    return output


def computed_again(values: Tensor) -> AbstractContextManager[Any]:
    """Within it, an operation that would keep `values` for its gradient computes them again, where they say how."""
    again = getattr(values, "again", None)
    if again is None or again.version != values._version:
        return nullcontext()
    identity = _identity(values)

    def pack(kept: Tensor) -> tuple[Tensor, int] | None:
        return None if _identity(kept) == identity else (kept, kept._version)

    def unpack(packed: tuple[Tensor, int] | None) -> Tensor:
        if packed is None:
            return again.compute()
        _check_unchanged(*packed)
        return packed[0]

    return saved_tensors_hooks(pack, unpack)


def _check_unchanged(tensor: Tensor, version: int) -> None:
    if tensor._version != version:
        raise RuntimeError("a tensor that a gradient is computed from was changed in place")


def _identity(values: Tensor) -> tuple[Any, ...]:
    return values.data_ptr(), values.shape, values.stride(), values.dtype, values._version

"""Large outputs that cost little are computed again for a gradient, in place of being kept until then."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

LEAST_BYTES = (
    64 << 20
)  # of an output: smaller ones are kept, which saves another pass over what they come from


def say_how(output: Tensor, again: Callable[..., Tensor], values: Tensor, *others: Any) -> Tensor:
    """`output`, which is `again(values, *others)`, as large ones say."""
    if output.nbytes >= LEAST_BYTES:
        constant = values.detach()
        output.again = lambda: again(constant, *others)  # type: ignore[attr-defined]
    return output


def computed_again(values: Tensor) -> AbstractContextManager[Any]:
    """Within it, an operation that would keep `values` for its gradient computes them again, where they say how."""
    again = getattr(values, "again", None)
    if again is None:
        return nullcontext()
    identity = _identity(values)

    def pack(kept: Tensor) -> Tensor | None:
        return None if _identity(kept) == identity else kept

    def unpack(kept: Tensor | None) -> Tensor:
        return again() if kept is None else kept

    return saved_tensors_hooks(pack, unpack)


def _identity(values: Tensor) -> tuple[Any, ...]:
    return values.data_ptr(), values.shape, values.stride(), values.dtype

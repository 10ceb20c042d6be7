"""Calls of other functions in place of PyTorch's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

Replacements = Mapping[Callable[..., Any], Callable[..., Any]]


class Replacing(TorchFunctionMode):
    """Calls `replacements[function]` in place of each function, and the function where that returns None."""

    def __init__(self, replacements: Replacements) -> None:
        super().__init__()
        self.replacements = replacements

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        replacement = self.replacements.get(func)
        result = None if replacement is None else replacement(*args, **kwargs or {})
        return func(*args, **kwargs or {}) if result is None else result

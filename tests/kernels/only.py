"""One kind of kernels in place of those that the processor would take."""

from types import ModuleType

import pytest

from cifarlab.kernels.compiled import library


def only(patch: pytest.MonkeyPatch, module: ModuleType, name: str | None, cached: str) -> None:
    """Within `patch`, `module` has the kernels `name` alone, or none; `cached` is its function that finds them."""
    if name is not None and library(name) is None:
        pytest.skip(f"this processor has no {name}, or the package was installed without")
    patch.setattr(module, "KERNELS", () if name is None else (name,))
    find = getattr(module, cached)
    find.cache_clear()
    found = find()
    find.cache_clear()
    patch.setattr(module, cached, lambda: found)

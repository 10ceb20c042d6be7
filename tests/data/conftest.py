"""Fixtures of the tests of official files."""

from pathlib import Path

import pytest
from small_cifar import SmallData

from cifarlab.data import sources


@pytest.fixture(scope="session")
def small() -> SmallData:
    return SmallData()


@pytest.fixture
def small_for_cifar10(small: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has its own empty cache, no CIFARLAB_DATA, and the small data set in CIFAR-10's place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CIFARLAB_DATA", raising=False)
    monkeypatch.setitem(sources.DATASETS, "cifar10", small.dataset)

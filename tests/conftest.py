"""Shared fixtures."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before PyTorch is loaded: tests run in as many processes as cores

from cifarlab.run import Run

if TYPE_CHECKING:
    from tests.report_pages import Page

# A busy machine takes long over an example now and then: that is no failure.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

SMALL = {
    "model.widths": [4, 8],
    "model.dense": 16,
    "data.validation_images": 4400,  # leaves 600 to train on
    "schedule.name": "constant",
    "optimizer.learning_rate": 0.02,
    "epochs": 2,
    "device.threads": 1,  # faster than two for a network this small
}


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small network trained for 2 epochs on 600 of the demo pictures. Copy it before changing anything in it."""
    from cifarlab import train

    return train("demo", data="demo", out=tmp_path_factory.mktemp("demo") / "run", overrides=SMALL)


@pytest.fixture(scope="session")
def small_settings() -> list[str]:
    """The settings of `demo_run` for the command line."""
    return [part for name, value in SMALL.items() for part in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory is an empty one for the length of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def single_report(demo_run: Run, tmp_path_factory: pytest.TempPathFactory) -> "Page":
    from tests.report_pages import make_single

    return make_single(demo_run, tmp_path_factory.mktemp("single-report"))


@pytest.fixture(scope="session")
def several_report(demo_run: Run, tmp_path_factory: pytest.TempPathFactory) -> "Page":
    from tests.report_pages import make_several

    return make_several(demo_run, tmp_path_factory.mktemp("several-report"))

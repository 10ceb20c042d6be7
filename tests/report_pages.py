"""Pages to test: made once, whichever module asks first."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from cifarlab.cli import main
from cifarlab.evaluation import evaluate
from cifarlab.run import Run

FEW = 20  # pictures to change
HOSTILE = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", '{{ 7 * 7 }} & "quoted"')


@dataclasses.dataclass(frozen=True)
class Page:
    run: Run
    path: Path
    document: dict  # what the command prints with --json

    @cached_property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @cached_property
    def data(self) -> dict:
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text, flags=re.S)
        assert found
        return json.loads(found[1])


def page_of(*runs: Run, options: Sequence[str] = ("--sample", "0")) -> Page:
    out = runs[0].path.parent / "report.html"
    for run in () if "--split" in options else runs:
        evaluate(run)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["report", *(str(run.path) for run in runs), "--out", str(out), "--json", *options]) == 0
    return Page(runs[0], out, json.loads(printed.getvalue()))


def copied(run: Run, to: Path) -> Run:
    shutil.copytree(run.path, to)
    return Run(to)


def make_single(trained: Run, folder: Path) -> Page:
    """The page of a run whose data has class names that try to be code."""
    run = copied(trained, folder / "run")
    data = json.loads((run.path / "data.json").read_text())
    data["classes"][: len(HOSTILE)] = HOSTILE
    (run.path / "data.json").write_text(json.dumps(data))
    (run.path / "SHA256SUMS").unlink()
    return page_of(run, options=("--sample", str(FEW)))


def make_several(trained: Run, folder: Path) -> Page:
    """Three runs: one, and two that favour other classes than it does."""
    runs = [copied(trained, folder / name) for name in ("run", "other", "third")]
    for run, order in zip(runs[1:], (np.roll(np.arange(10), 1), np.arange(10)[::-1]), strict=True):
        weights = run.path / "weights-best.safetensors"
        with safe_open(weights, "numpy") as file:
            header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors["output.bias"] += 0.1 * order.astype(np.float32)
        save_file(tensors, weights, metadata=header)
        (run.path / "SHA256SUMS").unlink()
    return page_of(*runs, options=("--sample", "5"))

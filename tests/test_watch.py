"""Curves in a terminal, of a training that another process writes."""

import io
import shutil
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from cifarlab import Run
from cifarlab.cli import main, watch
from cifarlab.terminal_plot import AXIS_CELLS, MARKS, Line, plot


def drawn(lines: list[Line], width: int = 40, height: int = 12) -> list[str]:
    text = plot(lines, width=width, height=height, title="loss", x_name="epoch", form=lambda y: f"{y:.1f}")
    return text.plain.splitlines()


def test_a_line_goes_from_corner_to_corner_with_its_marks() -> None:
    rows = drawn([Line("a", [(1, 2.0), (2, 1.0), (3, 0.0)])])
    assert rows[0].split() == ["loss", "o", "a"]
    assert rows[1].startswith("    2.0 │o") and rows[-3].startswith("    0.0 │")
    assert rows[-1].split() == ["1", "epoch", "3"]
    assert max(len(row) for row in rows) <= 40 and len(rows) == 12
    inside = [row[AXIS_CELLS:] for row in rows[1:-2]]
    firsts = [len(row) - len(row.lstrip()) for row in inside]
    assert firsts == sorted(firsts) and inside[-1].rstrip() != ""  # it falls to the right


def test_lines_are_told_apart_without_colour() -> None:
    rows = drawn(
        [Line(name, [(x, x * slope) for x in range(1, 20)]) for name, slope in (("a", 1), ("b", -1))]
    )
    text = "".join(row[AXIS_CELLS:] for row in rows[1:-2])
    assert all(text.count(mark) >= 2 for mark in MARKS[:2])


@pytest.mark.parametrize("points", [[], [(1, None)], [(1, float("nan"))], [(1, 0.5)], [(1, 0.5), (2, 0.5)]])
def test_little_to_draw_is_no_error(points: list) -> None:
    rows = drawn([Line("a", points)])
    assert ("nothing to draw yet" in rows[-1]) == (len([y for _, y in points if y == 0.5]) == 0)


@pytest.fixture
def run(demo_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(demo_run.path, tmp_path / "run")
    return Run(tmp_path / "run")


def rewind(run: Run, epochs: int) -> str:
    """The run as it was after `epochs` of 2; what metrics.jsonl held at its end."""
    (run.path / "SHA256SUMS").unlink()
    whole = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text("".join(whole.splitlines(keepends=True)[:epochs]))
    return whole


def test_off_a_terminal_it_prints_each_epoch_and_ends_with_the_training(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)
    whole = rewind(run, 1)

    def train() -> None:
        time.sleep(0.2)
        (run.path / "metrics.new").write_text(whole)
        (run.path / "metrics.new").rename(run.path / "metrics.jsonl")

    other = threading.Thread(target=train)
    other.start()
    assert main(["watch", str(run.path)]) == 0
    other.join()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "/2 " in line and line.startswith(" ")] == ["1/2", "2/2"]
    assert ": epoch 2/2" in lines[-1] and "complete in" in lines[-1]
    assert "\x1b" not in "".join(lines)


def test_once_tells_how_far_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rewind(run, 1)
    assert main(["watch", str(run.path), "--once"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("s left")
    (run.path / "metrics.jsonl").unlink()
    assert main(["watch", str(run.path), "--once"]) == 0
    assert "epoch 0/2, the first one is not finished" in capsys.readouterr().out


def test_time_left_and_a_training_that_stopped(demo_run: Run) -> None:
    rows = [{**demo_run.metrics[0], "epoch": n, "elapsed_seconds": 10.0 * n} for n in (1, 2, 3)]
    recipe = demo_run.recipe.model_copy(update={"epochs": 9})
    standing = watch.Standing("run", recipe, rows, is_complete=False, divergence=None, silent_seconds=4.0)
    assert standing.seconds_per_epoch == 10.0
    assert standing.line.endswith(", 56 s left")
    silent = watch.Standing("run", recipe, rows, is_complete=False, divergence=None, silent_seconds=300.0)
    assert "nothing new for 5 min 00 s: it may have stopped" in silent.line
    diverged = watch.Standing("run", recipe, rows, is_complete=False, divergence="nan", silent_seconds=0.0)
    assert diverged.is_over and diverged.line.endswith("diverged")


def test_the_screen_of_two_runs_fits(run: Run, demo_run: Run) -> None:
    console = Console(width=100, height=30, file=io.StringIO(), force_terminal=True)
    screen = watch.curves([watch.standing_of(each) for each in (run, demo_run)], 100, 29)
    unwrapped = console.options.update(no_wrap=True)  # as the command's console asks for
    lines = ["".join(part.text for part in line) for line in console.render_lines(screen, unwrapped)]
    assert len(lines) <= 30 and max(len(line) for line in lines) <= 100
    assert "".join(lines).count("complete in") == 2
    named = f"o {run.path.parent.name}/run validation  x {demo_run.path.parent.name}/run validation"
    assert sum(named in line for line in lines) == 2

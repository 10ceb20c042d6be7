"""One page that says what a run does and how sure that is, or sets several runs beside each other.

A single HTML file: it needs no network and no server, and it is small enough to be mailed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifarlab.data import Source
from cifarlab.errors import UserError
from cifarlab.files import write_atomic
from cifarlab.report.stress import SAMPLE, looks, sample
from cifarlab.run import Run

MOST_RUNS = 8  # colours and dashes that can be told apart

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What a report was made of: `accuracies` 0..1, in the order of the runs."""

    path: Path
    size_bytes: int
    runs: tuple[str, ...]
    names: tuple[str, ...]
    split: str
    weights: tuple[str, ...]
    n: int
    accuracies: tuple[float, ...]
    n_changed_pictures: int


def write_report(
    runs: Sequence[Run | str | Path],
    out: str | Path,
    *,
    split: str = "test",
    weights: str | None = None,
    data: Source | None = None,
    data_dir: str | Path | None = None,
    sample_pictures: int = SAMPLE,
    progress: Progress | None = None,
    decoding: Progress | None = None,
) -> Written:
    """Write the page of one run, or of 2 to 8 runs on the same data, to `out`.

    The runs are evaluated where they are not yet; the test pictures are opened for the page, which is recorded in
    each run as a use of the test set.

    Args:
        split: "test", "validation" or "train".
        weights: "best" or "last"; None for those that each run's recipe names.
        data, data_dir: as for `cifarlab.evaluate`.
        sample_pictures: how many pictures robustness and test-time augmentation are measured on; 0 leaves both out.
        progress: called as `progress(done, total)`, in pictures looked at for those two.
        decoding: called likewise where picture files have to be decoded again.

    Raises:
        UserError: for runs that cannot be evaluated or do not belong beside each other.
    """
    from cifarlab.report.judged import judge
    from cifarlab.report.page import page_of_one, page_of_several

    opened = [run if isinstance(run, Run) else Run(run) for run in runs]
    if not 0 < len(opened) <= MOST_RUNS:
        raise UserError(f"a report is of 1 to {MOST_RUNS} runs, {len(opened)} given")
    if sample_pictures < 0:
        raise UserError(f"the pictures to change should be 0 or more, {sample_pictures} given")
    judged = judge(opened, split, weights, data, data_dir, decoding)
    chosen = sample(len(judged[0].labels), sample_pictures)
    total, done = looks(len(chosen)) * len(judged), 0

    def looked_at(n_pictures: int) -> None:
        nonlocal done
        done += n_pictures
        if progress is not None:
            progress(done, total)

    if len(judged) == 1:
        page = page_of_one(judged[0], chosen, looked_at)
    else:
        page = page_of_several(judged, chosen, looked_at)
    content = page.encode()
    write_atomic(Path(out), content)
    return Written(
        path=Path(out),
        size_bytes=len(content),
        runs=tuple(str(each.run.path) for each in judged),
        names=tuple(each.name for each in judged),
        split=split,
        weights=tuple(each.evaluation.weights for each in judged),
        n=len(judged[0].labels),
        accuracies=tuple(each.evaluation.accuracy for each in judged),
        n_changed_pictures=len(chosen),
    )

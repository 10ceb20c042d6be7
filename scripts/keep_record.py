"""Copy runs into records: what they were, what came out, their curves; not their weights or resume state.

python scripts/keep_record.py /tmp/runs/cnn4 results/cnn4                        a recipe's seeds
python scripts/keep_record.py runs/study-batch-size results/study-batch-size     a study, with its table and figure

A record that is there already is written anew.
"""

import shutil
import sys
from pathlib import Path

from cifarlab.groups import runs_under

KEPT = (
    "recipe.json",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "metrics.csv",
    "evaluation.json",
    "calibration.json",
    "diverged.json",
    "figures/learning-curves.png",
)
OF_A_STUDY = ("study.md", "study.png")


def keep(run: Path, record: Path) -> None:
    if record.exists():
        shutil.rmtree(record)
    names = [name for name in KEPT if (run / name).exists()]
    if len((run / "metrics.jsonl").read_text().splitlines()) < 2:  # of one epoch there is no curve
        names.remove("figures/learning-curves.png")
    for name in names:
        (record / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, record / name)
    lines = (run / "SHA256SUMS").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split("  ", 1)[1].strip() in names]
    (record / "SHA256SUMS").write_text("".join(kept))


def main(source: Path, records: Path) -> None:
    for run in runs_under([source]):
        if run.metrics:
            keep(run.path, records / run.path.relative_to(source))
    for name in OF_A_STUDY:
        if (source / name).exists():
            shutil.copyfile(source / name, records / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Copy a run's record into results/: what it was, what came out, its curves; not its weights or resume state.

python scripts/keep_record.py RUN results/NAME
"""

import shutil
import sys
from pathlib import Path

KEPT = (
    "recipe.json",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "metrics.csv",
    "evaluation.json",
    "figures/learning-curves.png",
)


def keep(run: Path, record: Path) -> None:
    record.mkdir(parents=True)
    for name in KEPT:
        (record / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(run / name, record / name)
    lines = (run / "SHA256SUMS").read_text().splitlines(keepends=True)
    (record / "SHA256SUMS").write_text(
        "".join(line for line in lines if line.split("  ", 1)[1].strip() in KEPT)
    )


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))

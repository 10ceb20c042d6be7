"""How long 94 % of CIFAR-10's test pictures takes: the recipe fast94 against the published method in plain PyTorch.

    python benchmarks/time_to_94.py --data-dir DIR [--seeds 0 1 2]

Ours is `cifarlab train` and `cifarlab evaluate` as a user starts them, a process each. The published method is
`airbench94_plain.py`, in float32 as a script is written for a CPU, and in bfloat16, near the half precision of the
author. Two whole epochs of it are run, one that trains the whitening layer's bias and one that does not; the published
schedule has three and five of these. See benchmarks/README.md.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keras_fit import RESULTS, processor

PLAIN = Path(__file__).parent / "airbench94_plain.py"
EPOCHS_OF_A_KIND = {"whitening bias trained": 3, "whitening bias frozen": 5}  # of the published 8
GOAL = 0.94
BASELINES = ("float32", "bfloat16")  # each after a run of ours


def output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def ours(recipe: str, seed: int, out: Path, data: list[str]) -> dict[str, Any]:
    """Train, unless `out` holds the finished run, and judge on the test set."""
    cifarlab = [sys.executable, "-m", "cifarlab.cli"]
    if not out.exists():
        output([*cifarlab, "train", recipe, "--seed", str(seed), "--out", str(out), *data])
    judged = json.loads(output([*cifarlab, "evaluate", str(out), "--json", *data]))
    last_epoch = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "seed": seed,
        "train_seconds": last_epoch["elapsed_seconds"],
        "test_accuracy": judged["accuracy"],
        "test_accuracy_with_tta": judged["accuracy_with_tta"],
    }


def published(precision: str, data: list[str]) -> dict[str, Any]:
    """A whole epoch of each kind, and what the published number of them takes."""
    command = [sys.executable, str(PLAIN), "--precision", precision, *data]
    lines = output([*command, "--train-epochs", "2", "--whiten-bias-epochs", "1"]).splitlines()
    seconds = dict(
        zip(EPOCHS_OF_A_KIND, (json.loads(line)["epoch_seconds"] for line in lines[:2]), strict=True)
    )
    whole = sum(EPOCHS_OF_A_KIND[kind] * each for kind, each in seconds.items())
    return {"precision": precision, "epoch_seconds": seconds, "whole_train_seconds": whole}


def summary(values: list[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": statistics.mean(values), "deviation": deviation}


def printed(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs of ours and of the published method, from the lines that an earlier run of this script printed."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return [each for each in lines if "seed" in each], [each for each in lines if "precision" in each]


def print_table(document: dict[str, Any]) -> None:
    mine, times = document["summary"], document["train_seconds"]
    with_views, without = mine["test_accuracy_with_tta"], mine["test_accuracy"]
    print(
        f"{document['processor']}, {document['cores']} cores, load before {document['load_average_before'][0]:.1f}"
    )
    print(f"{'':34s}{'training, s':>12s}{'ratio':>8s}   test accuracy with views (without)")
    about = f"{100 * with_views['mean']:.2f} % ({100 * without['mean']:.2f} %), {with_views['n']} seeds"
    print(f"{document['recipe']:34s}{times['mean']:12.0f}{'':8s}   {about}")
    for each in document["published"]:
        label = f"airbench94, plain, {each['precision']}"
        of = "3 and 5 epochs of the two kinds, of which one each was run"
        whole = each["whole_train_seconds"]
        print(f"{label:34s}{whole:12.0f}{whole / times['mean']:8.2f}   {of}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir")
    parser.add_argument("--recipe", default="fast94")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, default=list(BASELINES))
    parser.add_argument(
        "--cut-off", type=Path, help="what a run that was cut off printed: it is gone on with"
    )
    parser.add_argument(
        "--runs", type=Path, help="keep the runs here, and take those that are; default: deleted"
    )
    parser.add_argument(
        "--untimed",
        type=int,
        nargs="+",
        default=[],
        help="seeds whose time other programs spoilt: it does not count",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "time_to_94.json")
    options = parser.parse_args()
    data = ["--data-dir", options.data_dir] if options.data_dir else []
    load_before = os.getloadavg()
    runs, published_runs = printed(options.cut_off) if options.cut_off else ([], [])
    with tempfile.TemporaryDirectory() as folder:
        kept = options.runs or Path(folder)
        for seed, precision in itertools.zip_longest(options.seeds, options.baselines):
            if seed is not None:
                runs.append(ours(options.recipe, seed, kept / f"seed-{seed}", data))
                print(json.dumps(runs[-1]), file=sys.stderr)
            if precision is not None:
                published_runs.append(published(precision, data))
                print(json.dumps(published_runs[-1]), file=sys.stderr)
    keys = ("test_accuracy", "test_accuracy_with_tta")
    document = {
        "measured_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "recipe": options.recipe,
        "goal": GOAL,
        "runs": runs,
        "untimed_seeds": options.untimed,
        "published": published_runs,
        "train_seconds": summary(
            [each["train_seconds"] for each in runs if each["seed"] not in options.untimed]
        ),
        "summary": {key: summary([each[key] for each in runs]) for key in keys},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print_table(document)
    print(f"record: {options.out}")


if __name__ == "__main__":
    main()

"""How much faster a step of training is with our kernels than with PyTorch alone.

    python benchmarks/kernels.py [--recipes fast94 airbench94 vgg3 vgg3-bn cnn4] [--data-dir DIR]

The same recipe twice, with `device.winograd` and without, in one process; the two take turns of as many steps as take
`--turn-seconds`, and every ratio is of two neighbours in time. The steps are the training loop's own (`train_step`), on
whole pictures, all of one batch of CIFAR-10.
"""

import argparse
import json
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifarlab.process import available_cores, keep_freed_memory, prepare_environment

prepare_environment()

import torch  # noqa: E402
from keras_fit import RESULTS, processor  # noqa: E402

from cifarlab.environment import choose_precision  # noqa: E402
from cifarlab.job import Job, prepare  # noqa: E402
from cifarlab.kernels import kernels_here  # noqa: E402
from cifarlab.recipe import override  # noqa: E402
from cifarlab.recipes import get_recipe  # noqa: E402
from cifarlab.training import train_step  # noqa: E402

RECIPES = ("fast94", "airbench94", "vgg3", "vgg3-bn", "cnn4")
WARM_UP_STEPS = 2


class Side:
    """A recipe, trained on its first batch over and over."""

    def __init__(self, recipe: str, *, winograd: bool, data_dir: str | None) -> None:
        whole = {f"data.training_{name}": [] for name in ("scales", "crops", "skips")}
        settings = {"data.validation": "none", "device.winograd": winograd, **whole}
        self.job: Job = prepare(override(get_recipe(recipe), settings), data_dir=data_dir)
        self.images, self.labels = next(iter(self.job.stream.from_step(0)))
        self.step = 0
        self.seconds_of(WARM_UP_STEPS)

    def seconds_of(self, steps: int) -> float:
        """Seconds a step."""
        start = time.perf_counter()
        for _ in range(steps):
            train_step(self.job, self.images, self.labels, self.step, rate=1e-3)
            self.step += 1
        return (time.perf_counter() - start) / steps


def measure(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    sides = {on: Side(recipe, winograd=on, data_dir=options.data_dir) for on in (True, False)}
    steps = {on: max(1, round(options.turn_seconds / side.seconds_of(2))) for on, side in sides.items()}
    pairs = []
    for index in range(options.pairs):
        order = (True, False) if index % 2 else (False, True)
        pairs.append({on: sides[on].seconds_of(steps[on]) for on in order})
    ratios = sorted(pair[False] / pair[True] for pair in pairs)
    return {
        "recipe": recipe,
        "batch_size": sides[True].job.recipe.batch_size,
        "precision": choose_precision(sides[True].job.recipe.device, sides[True].job.device),
        "milliseconds_a_step": [1e3 * pair[True] for pair in pairs],
        "milliseconds_a_step_by_pytorch": [1e3 * pair[False] for pair in pairs],
        "ratio": {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--data-dir")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--turn-seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    options = parser.parse_args()
    keep_freed_memory()
    load_before = os.getloadavg()
    print(f"{'recipe':14s}{'batch':>7s}  {'precision':10s}{'ms, PyTorch':>12s}{'ms, ours':>10s}   ratio")
    rows = []
    for recipe in options.recipes:
        row = measure(recipe, options)
        rows.append(row)
        plain, ours = (
            statistics.median(row[key]) for key in ("milliseconds_a_step_by_pytorch", "milliseconds_a_step")
        )
        ratio = row["ratio"]
        print(
            f"{recipe:14s}{row['batch_size']:7,d}  {row['precision']:10s}{plain:12.0f}{ours:10.0f}"
            f"   {ratio['median']:.2f} ({ratio['lowest']:.2f} - {ratio['highest']:.2f})"
        )
    document = {
        "measured_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": available_cores(),
        "load_average_before": load_before,
        "torch": torch.__version__,
        "kernels": kernels_here(),
        "rows": rows,
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"record: {options.out}")


if __name__ == "__main__":
    main()

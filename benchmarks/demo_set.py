"""The `demo` recipe on the `demo` set: its accuracy, and what augmentation adds, over several seeds.

    python benchmarks/demo_set.py [--seeds 3]

Prints one table and stores it as benchmarks/results/demo_set.json. About four minutes on two cores.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import cifarlab

RESULT = Path(__file__).parent / "results" / "demo_set.json"
VARIANTS = {"as it is": {}, "without augmentation": {"augment.shift": 0.0, "augment.flip": 0.0}}


def one_run(seed: int, overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    run = cifarlab.train("demo", data="demo", out=folder, seed=seed, overrides=overrides)
    judged = cifarlab.evaluate(run)
    return {
        "seed": seed,
        "test_accuracy": judged.accuracy,
        "weights": judged.weights,
        "epochs": len(run.metrics),
        "elapsed_seconds": run.metrics[-1]["elapsed_seconds"],
        "environment": run.environment,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        results = {
            name: [one_run(seed, overrides, Path(folder) / f"{name}-{seed}") for seed in range(seeds)]
            for name, overrides in VARIANTS.items()
        }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(
        "\n| demo | n | test accuracy %: mean | deviation | seconds a run |\n| --- | --- | --- | --- | --- |"
    )
    for name, runs in results.items():
        accuracies = [100 * run["test_accuracy"] for run in runs]
        seconds = statistics.mean(run["elapsed_seconds"] for run in runs)
        print(
            f"| {name} | {len(runs)} | {statistics.mean(accuracies):.2f} | {statistics.stdev(accuracies):.2f}"
            f" | {seconds:.0f} |"
        )
    pairs = zip(*results.values(), strict=True)
    gains = [100 * (augmented["test_accuracy"] - plain["test_accuracy"]) for augmented, plain in pairs]
    print(
        f"\nAugmentation adds {', '.join(f'{gain:.1f}' for gain in gains)} points (seeds 0 to {seeds - 1})."
    )


if __name__ == "__main__":
    main()

"""What transfer adds where pictures are few: a base trained on five classes of CIFAR-10, used for the other five.

    python benchmarks/transfer.py [--seeds 5] [--work DIR]

The base sees all 25,000 training pictures of the first five classes. From the other five, each seed draws 50 training
pictures a class, and trains three ways on them: from scratch, the base frozen and a new head, and the base fine-tuned.
The learning rate of each way is chosen on training pictures (1,000 that no seed trains on), with a draw of its own.
Then every seed's last weights are judged once on the 5,000 test pictures of those classes.

Prints one table and stores it as benchmarks/results/transfer.json. What is trained in DIR already is not trained again.
About 40 minutes on one core.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import cifarlab
from cifarlab.data import Source, Split, open_source
from cifarlab.models.specs import VGG
from cifarlab.recipe import Adam, Augment, Data, Device, OneCycle, Recipe
from cifarlab.statistics import difference

RESULT = Path(__file__).parent / "results" / "transfer.json"
PER_CLASS = 50
TUNING_SEED = 1_000
HELD_OUT = 200  # training pictures of each class, for the choice of rates
RATES = (0.002, 0.008, 0.03, 0.1)
BASE = Recipe(
    name="transfer-base",
    source="cifarlab: benchmarks/transfer.py",
    network="C16 C16 P C32 C32 P C64 C64 P F D64 out, batch norm after each ReLU",
    model=VGG(widths=(16, 32, 64), dense=64, batch_norm=True),
    data=Data(validation_fraction=0.1),
    augment=Augment(shift=0.1, flip=0.5),
    optimizer=Adam(learning_rate=0.01),
    schedule=OneCycle(),
    device=Device(threads=1),
    weights="last",
    batch_size=64,
    epochs=12,
)
FEW = {
    "data.validation": "none",
    "schedule.name": "one-cycle",
    "batch_size": 25,
    "epochs": 40,
}
WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {},
    "frozen base": {"finetune.freeze": "block*"},
    "fine-tuned base": {"finetune.block_factor": 0.3},
}


def classes_of(source: Source, classes: list[int]) -> Source:
    """The pictures of these classes alone, under labels from 0."""

    def read(split: Any) -> Split:
        whole = source.load(split)
        chosen = np.flatnonzero(np.isin(whole.labels, classes))
        return Split(whole.images[chosen], np.searchsorted(classes, whole.labels[chosen]))

    names = tuple(source.classes[index] for index in classes)
    checksum = f"{source.checksum}, classes {classes}"
    return dataclasses.replace(source, classes=names, checksum=checksum, read=read)


def few_of(source: Source, seed: int) -> Source:
    """`PER_CLASS` training pictures of each class, drawn with `seed` from those that are not held out."""

    def read(split: Any) -> Split:
        train = source.load(split)
        if split == "test":
            return train
        rng = np.random.default_rng(seed)
        chosen = [
            rng.choice(np.flatnonzero(train.labels == label)[HELD_OUT:], PER_CLASS, replace=False)
            for label in range(len(source.classes))
        ]
        places = np.sort(np.concatenate(chosen))
        return Split(train.images[places], train.labels[places])

    return dataclasses.replace(source, checksum=f"{source.checksum}, draw {seed}", read=read)


def held_out(source: Source) -> Split:
    train = source.load("train")
    places = np.concatenate(
        [np.flatnonzero(train.labels == label)[:HELD_OUT] for label in range(len(source.classes))]
    )
    return Split(train.images[places], train.labels[places])


def accuracy(run: cifarlab.Run, split: Split) -> float:
    predictions = cifarlab.load_predictor(run).predict(split.images, top=1)
    predicted = np.array([prediction.predictions[0].index for prediction in predictions])
    return float((predicted == split.labels).mean())


def trained(
    folder: Path, name: str, source: Source, seed: int, overrides: dict[str, Any], **options: Any
) -> cifarlab.Run:
    out = folder / name
    if (out / "recipe.json").exists() and (run := cifarlab.Run(out)).is_complete:
        return run
    return cifarlab.train(BASE, data=source, out=out, seed=seed, overrides=overrides, **options)


def one_way(
    folder: Path, base: cifarlab.Run, target: Source, way: str, rate: float, seed: int
) -> cifarlab.Run:
    options = {} if way == "from scratch" else {"init_from": base}
    overrides = {**FEW, **WAYS[way], "optimizer.learning_rate": rate}
    name = f"{way.replace(' ', '-')}-{rate:g}-{seed}"
    return trained(folder, name, few_of(target, seed), seed, overrides, **options)


def chosen_rates(folder: Path, base: cifarlab.Run, target: Source) -> dict[str, dict[float, float]]:
    """Each way's accuracy on the held-out training pictures by learning rate."""
    split = held_out(target)
    return {
        way: {rate: accuracy(one_way(folder, base, target, way, rate, TUNING_SEED), split) for rate in RATES}
        for way in WAYS
    }


def summary(results: dict[str, list[float]]) -> list[dict[str, Any]]:
    scratch = results["from scratch"]
    rows = []
    for way, accuracies in results.items():
        compared = (
            dataclasses.asdict(difference(scratch, accuracies, paired=True))
            if way != "from scratch"
            else None
        )
        rows.append(
            {
                "way": way,
                "n": len(accuracies),
                "mean": statistics.mean(accuracies),
                "sd": statistics.stdev(accuracies),
                "minus_scratch": compared,
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{PER_CLASS} pictures of each of five classes | n | test accuracy %: mean | deviation | minus scratch, 95 %"
    )
    for row in rows:
        gain = row["minus_scratch"]
        interval = (
            f"{100 * gain['mean']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]" if gain else ""
        )
        print(f"{row['way']} | {row['n']} | {100 * row['mean']:.2f} | {100 * row['sd']:.2f} | {interval}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.work or Path(tempfile.mkdtemp())
    whole = open_source("cifar10")
    target = classes_of(whole, [5, 6, 7, 8, 9])
    base = trained(folder, "base", classes_of(whole, [0, 1, 2, 3, 4]), 0, {})
    tuning = chosen_rates(folder, base, target)
    rates = {way: max(by_rate, key=lambda rate: by_rate[rate]) for way, by_rate in tuning.items()}
    print({way: f"{rate:g}" for way, rate in rates.items()})
    test = target.load("test")
    results = {
        way: [
            accuracy(one_way(folder, base, target, way, rates[way], seed), test)
            for seed in range(arguments.seeds)
        ]
        for way in WAYS
    }
    rows = summary(results)
    record = {
        "base_classes": list(base.classes),
        "target_classes": list(target.classes),
        "pictures_per_class": PER_CLASS,
        "base": {"validation_accuracy": base.metrics[-1]["validation_accuracy"], "epochs": len(base.metrics),
                 "elapsed_seconds": base.metrics[-1]["elapsed_seconds"], "recipe": base.recipe.model_dump(mode="json")},
        "overrides": {way: {**FEW, **WAYS[way], "optimizer.learning_rate": rates[way]} for way in WAYS},
        "tuning_accuracy": tuning,
        "test_accuracy": results,
        "summary": rows,
        "environment": base.environment,
    }  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print_table(rows)


if __name__ == "__main__":
    main()

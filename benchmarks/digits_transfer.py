"""What CIFAR-10 weights add to ten pictures a class of something else: scikit-learn's handwritten digits as pictures.

    python benchmarks/digits_transfer.py [--seeds 8] [--work DIR] [--base RUN]

The base is trained on the first 10,000 pictures of CIFAR-10, all ten classes; or it is a run of yours of the same
network. The 1,797 digits, 8 x 8 and grey, are enlarged to 32 x 32. Each seed draws ten of each digit and trains
twice on them, as transfer.py does: from scratch, and from the base's weights. The learning rate of each way is
chosen on 500 digits that no seed trains on and that judge nothing else, with a draw of its own. The other digits
that the seed did not draw judge the last weights.

Prints one table and stores it as benchmarks/results/digits_transfer.json. What is trained in DIR already is not
trained again. About ten minutes on one core.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from transfer import FEW, accuracy, trained

import cifarlab
from cifarlab.data import Source, Split, open_source
from cifarlab.statistics import difference

RESULT = Path(__file__).parent / "results" / "digits_transfer.json"
PER_CLASS = 10
FOR_RATES = 500
TUNING_SEED = 1_000
RATES = {"from scratch": (0.03, 0.1, 0.3), "from CIFAR-10 weights": (0.003, 0.008, 0.03)}
BASE_PICTURES = 10_000
BASE_SETTINGS = {"epochs": 4}
SETTINGS = {**FEW, "augment.flip": 0.0, "epochs": 60}
WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {},
    "from CIFAR-10 weights": {"finetune.block_factor": 0.3},
}


def base_source() -> Source:
    whole = open_source("cifar10")

    def read(split: Any) -> Split:
        content = whole.load(split)
        return Split(content.images[:BASE_PICTURES], content.labels[:BASE_PICTURES])

    return dataclasses.replace(whole, checksum=f"{whole.checksum}, first {BASE_PICTURES}", read=read)


def digits() -> Split:
    """uint8 (1797, 32, 32, 3) and labels: grey levels 0..16 stretched to 0..255, each side enlarged four times."""
    data = load_digits()
    levels = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = [
        np.asarray(Image.fromarray(level).resize((32, 32), Image.Resampling.BICUBIC)) for level in levels
    ]
    return Split(np.repeat(np.stack(images)[..., None], 3, axis=3), data.target.astype(np.int64))


def parts(whole: Split, seed: int) -> dict[str, np.ndarray]:
    """Indices of the digits that choose rates, that this seed trains on, and that judge it."""
    order = np.random.default_rng(2020).permutation(len(whole.labels))
    rest = order[FOR_RATES:]
    rng = np.random.default_rng(seed)
    train = np.concatenate(
        [rng.choice(rest[whole.labels[rest] == digit], PER_CLASS, replace=False) for digit in range(10)]
    )
    return {"rates": order[:FOR_RATES], "train": np.sort(train), "test": np.setdiff1d(rest, train)}


def chosen(whole: Split, places: np.ndarray) -> Split:
    return Split(whole.images[places], whole.labels[places])


def digits_source(whole: Split, seed: int) -> Source:
    places = parts(whole, seed)
    return Source(
        name="digits",
        location="scikit-learn",
        classes=tuple("0123456789"),
        checksum=f"scikit-learn digits, draw {seed}",
        read=lambda split: chosen(whole, places[split]),
    )


def one(folder: Path, base: cifarlab.Run, whole: Split, way: str, rate: float, seed: int) -> cifarlab.Run:
    options = {} if way == "from scratch" else {"init_from": base}
    settings = {**SETTINGS, **WAYS[way], "optimizer.learning_rate": rate}
    name = f"{way.replace(' ', '-')}-{rate:g}-{seed}"
    return trained(folder, name, digits_source(whole, seed), seed, settings, **options)


def print_table(results: dict[str, list[float]], rates: dict[str, float], gain: dict[str, Any]) -> None:
    print(
        f"\n{PER_CLASS} pictures of each digit | learning rate | seeds | accuracy % on the others: mean | deviation"
    )
    for way, accuracies in results.items():
        mean, sd = 100 * statistics.mean(accuracies), 100 * statistics.stdev(accuracies)
        print(f"{way} | {rates[way]:g} | {len(accuracies)} | {mean:.2f} | {sd:.2f}")
    low, high = 100 * gain["low"], 100 * gain["high"]
    print(f"difference, paired: {100 * gain['mean']:+.2f} points, 95 % interval [{low:+.2f}, {high:+.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--base", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.work or Path(tempfile.mkdtemp())
    base = (
        cifarlab.Run(arguments.base)
        if arguments.base
        else trained(folder, "base", base_source(), 0, BASE_SETTINGS)
    )
    whole = digits()
    for_rates = chosen(whole, parts(whole, 0)["rates"])
    tuning = {
        way: {
            rate: accuracy(one(folder, base, whole, way, rate, TUNING_SEED), for_rates) for rate in RATES[way]
        }
        for way in WAYS
    }
    rates = {way: max(by_rate, key=lambda rate: by_rate[rate]) for way, by_rate in tuning.items()}
    results = {
        way: [
            accuracy(
                one(folder, base, whole, way, rates[way], seed), chosen(whole, parts(whole, seed)["test"])
            )
            for seed in range(arguments.seeds)
        ]
        for way in WAYS
    }
    gain = dataclasses.asdict(
        difference(results["from scratch"], results["from CIFAR-10 weights"], paired=True)
    )
    record = {
        "pictures_per_class": PER_CLASS,
        "base": {"validation_accuracy": base.metrics[-1]["validation_accuracy"], "epochs": len(base.metrics),
                 "n_train": base.data["n_train"], "recipe": base.recipe.model_dump(mode="json")},
        "settings": {way: {**SETTINGS, **WAYS[way], "optimizer.learning_rate": rates[way]} for way in WAYS},
        "tuning_accuracy": tuning,
        "accuracy": results,
        "difference": gain,
        "environment": base.environment,
    }  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print_table(results, rates, gain)


if __name__ == "__main__":
    main()

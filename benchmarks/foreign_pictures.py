"""How many pictures of something else a calibrated run calls "unlike the training pictures", and how many of its own.

python benchmarks/foreign_pictures.py runs/fast94

The run's stored answers tell the rate of false alarms: on validation, where the threshold was set, and on the test set,
which `cifarlab evaluate` must have judged before; it is not opened here. Beside the rule that `cifarlab calibrate` uses
stand those it was chosen from, each at the same rate of false alarms on validation. The calibration error is told as
well, and what it would be with a temperature that mirror images have no say in.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images

from cifarlab import Run, text
from cifarlab.calibration import fit_temperature, measure_calibration
from cifarlab.data import open_source
from cifarlab.evaluation import stored_answers
from cifarlab.familiarity import RULES, score, threshold_at
from cifarlab.pictures import read_picture
from cifarlab.prediction import load_predictor
from cifarlab.training import predict_logits

RECORD = Path(__file__).parent / "results" / "foreign_pictures.json"
SIZE = 32
EACH = 1_000
WORDS = "the quick brown fox 1234 jumps over 56 lazy dogs invoice total sale open exit menu page"


def small(image: Image.Image) -> np.ndarray:
    return read_picture(image, SIZE, SIZE)


def digits() -> np.ndarray:
    """scikit-learn's handwritten digits, 8 x 8 in 17 greys, dark on light."""
    grey = (255 - load_digits().images[:EACH] * (255 / 16)).astype(np.uint8)
    return np.stack([small(Image.fromarray(each)) for each in grey])


def photograph_crops() -> np.ndarray:
    """Squares of 60 to 200 pixels at random from scikit-learn's two photographs: a temple, a flower."""
    draws = np.random.default_rng(1)
    photographs = [Image.fromarray(each) for each in load_sample_images().images]
    crops = []
    for number in range(EACH):
        image, side = photographs[number % 2], int(draws.integers(60, 201))
        left, top = draws.integers(0, image.width - side), draws.integers(0, image.height - side)
        crops.append(small(image.crop((left, top, left + side, top + side))))
    return np.stack(crops)


def drawn() -> np.ndarray:
    """The demo set: simple drawn shapes of ten classes."""
    return open_source("demo").load("test").images[:EACH]


def noise() -> np.ndarray:
    """Every channel of every pixel uniform in 0..255."""
    return np.random.default_rng(2).integers(0, 256, (EACH, SIZE, SIZE, 3), dtype=np.uint8)


def soft_noise() -> np.ndarray:
    """Noise of 4 x 4 pixels made larger: soft blobs of colour."""
    coarse = np.random.default_rng(3).integers(0, 256, (EACH, 4, 4, 3), dtype=np.uint8)
    large = (Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for each in coarse)
    return np.stack([np.asarray(each) for each in large])


def flat_colours() -> np.ndarray:
    colours = np.random.default_rng(4).integers(0, 256, (EACH, 1, 1, 3), dtype=np.uint8)
    return np.tile(colours, (1, SIZE, SIZE, 1))


def rendered_text() -> np.ndarray:
    """A few words in one colour on another, written by Pillow at 128 x 128 and made smaller."""
    draws = np.random.default_rng(5)
    pages = []
    for _ in range(EACH):
        paper, ink = (tuple(int(value) for value in draws.integers(0, 256, 3)) for _ in range(2))
        page = Image.new("RGB", (128, 128), paper)
        lines = "\n".join(" ".join(draws.choice(WORDS.split(), 2)) for _ in range(4))
        font = ImageFont.load_default(int(draws.integers(14, 34)))
        ImageDraw.Draw(page).multiline_text((4, 4), lines, fill=ink, font=font)
        pages.append(small(page))
    return np.stack(pages)


KINDS = {
    "handwritten digits": digits,
    "crops of two photographs": photograph_crops,
    "drawn shapes": drawn,
    "noise": noise,
    "soft blobs of noise": soft_noise,
    "flat colours": flat_colours,
    "rendered text": rendered_text,
}


def answers(run: Run, split: str) -> tuple[np.ndarray, np.ndarray]:
    stored = stored_answers(run, split, run.default_weights)
    if stored is None:
        raise SystemExit(f"first: cifarlab evaluate {run.path} --split {split}")
    return stored[0].numpy().astype(np.float64), stored[1].numpy()


def measure(run: Run, rate: float, temperature: float) -> dict:
    predictor = load_predictor(run)
    validation, test = answers(run, "validation"), answers(run, "test")
    foreign = {
        name: predict_logits(predictor.model, predictor.preparation, torch.from_numpy(make()))
        .double()
        .numpy()
        for name, make in KINDS.items()
    }
    rules = {}
    for rule in RULES:
        threshold = threshold_at(score(validation[0], rule), rate)
        rules[rule] = {
            "threshold": threshold,
            "false_alarms_validation": float((score(validation[0], rule) < threshold).mean()),
            "false_alarms_test": float((score(test[0], rule) < threshold).mean()),
            "found": {
                name: float((score(logits, rule) < threshold).mean()) for name, logits in foreign.items()
            },
        }
    alone = fit_temperature(*validation) or 1.0
    return {
        "run": run.path.name,
        "recipe": run.recipe.name,
        "weights_sha256": run.weights_checksum(run.default_weights),
        "n_validation": len(validation[0]),
        "n_test": len(test[0]),
        "n_each": EACH,
        "test_accuracy": float((test[0].argmax(1) == test[1]).mean()),
        "temperature": temperature,
        "expected_calibration_error_test": {
            "before": measure_calibration(*test).expected_error,
            "after": measure_calibration(*test, temperature).expected_error,
            "temperature_without_mirror_images": alone,
            "after_without_mirror_images": measure_calibration(*test, alone).expected_error,
        },
        "rate": rate,
        "rules": rules,
    }


def print_table(found: dict) -> None:
    rules = found["rules"]
    rows = [
        [
            "false alarms: validation",
            *(text.percent(each["false_alarms_validation"], 2) for each in rules.values()),
        ]
    ]
    rows.append(
        ["false alarms: test", *(text.percent(each["false_alarms_test"], 2) for each in rules.values())]
    )
    rows += [
        [f"found: {name}", *(text.percent(each["found"][name]) for each in rules.values())] for name in KINDS
    ]
    means = [float(np.mean(list(each["found"].values()))) for each in rules.values()]
    rows.append(["found: mean of the kinds", *(text.percent(mean) for mean in means)])
    print(text.markdown_table(["called unlike the training pictures", *rules], rows))
    error = found["expected_calibration_error_test"]
    print(
        f"{found['recipe']}, test accuracy {text.percent(found['test_accuracy'], 2)}. Expected calibration error on the"
        f" test set: {text.percent(error['before'], 2)} as trained,"
        f" {text.percent(error['after'], 2)} at temperature {found['temperature']:.3f}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", type=Path, help="a run that was calibrated and judged on the test set")
    options.add_argument("--record", type=Path, default=RECORD)
    given = options.parse_args()
    run = Run(given.run)
    if run.calibration is None:
        raise SystemExit(f"first: cifarlab calibrate {given.run}")
    found = measure(run, run.calibration["false_alarms"], run.calibration["temperature"])
    print_table(found)
    given.record.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

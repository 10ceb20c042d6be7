"""Runs that look trained and judged, without a training: for what compares and lists them."""

import json
from pathlib import Path
from typing import Any

import torch

from cifarlab.recipe import override
from cifarlab.recipes import get_recipe
from cifarlab.run import Run

CLASSES = [f"class {number}" for number in range(10)]
PICTURES = 500


def unjudged_run(path: Path, recipe: str = "demo", data: str = "demo", **fields: Any) -> Run:
    """A finished run of one epoch whose network was never asked. Fields are written `augment__flip=0.5`."""
    chosen = override(
        get_recipe(recipe),
        {"epochs": 1, **{name.replace("__", "."): value for name, value in fields.items()}},
    )
    about = {"name": data, "checksum": f"sha256:{data}", "classes": CLASSES, "validation_indices": [1, 3]}
    environment = {"device": "cpu", "device_name": "a processor", "threads": 1}
    run = Run.create(path, chosen, environment, {**about, "input_shape": [3, 32, 32]})
    row = {"epoch": 1, "step": 10, "train_loss": 1.0, "train_accuracy": 0.5, "learning_rate": 0.1}
    row |= {
        "validation_loss": 1.0,
        "validation_accuracy": 0.5,
        "images_per_second": 1.0,
        "elapsed_seconds": 60.0,
    }
    run.publish([row], {"weight": torch.zeros(1)}, {"classes": CLASSES})
    return run


def judged_run(path: Path, right: torch.Tensor | list[bool], split: str = "test", **fields: Any) -> Run:
    """A finished run whose network had these pictures right, bool (N,), as `evaluate` stores it."""
    run = unjudged_run(path, **fields)
    labels = torch.arange(len(right)) % 10
    answers = torch.where(torch.as_tensor(right), labels, (labels + 1) % 10)
    weights = run.default_weights
    header = {"weights_sha256": {weights: run.weights_checksum(weights)}, "data": run.data["checksum"]}
    logits = torch.nn.functional.one_hot(answers, 10).float()
    run.write_logits(split, {f"logits-{weights}": logits, "labels": labels}, header)
    accuracy = float(torch.as_tensor(right).double().mean())
    use = {"split": split, "weights": weights, "weights_sha256": run.weights_checksum(weights)}
    of_class = {"precision": accuracy, "recall": accuracy, "f1": accuracy, "n": len(right) // 10}
    classes = [{"name": name, **of_class} for name in CLASSES]
    result = {"accuracy": accuracy, "n": len(right), "classes": classes}
    judged = {split: {weights: result}, "test_set_uses": [use]}
    run.update_evaluations(lambda content: content.update(judged))
    return run


def group_at(folder: Path, accuracies: list[float], pictures: int = PICTURES, **fields: Any) -> Path:
    """A group of judged seeds, each with about the accuracy given; the same pictures are hard for all."""
    draws = torch.Generator().manual_seed(len(json.dumps(fields)))
    hardness = torch.linspace(0, 1, pictures)
    for seed, accuracy in enumerate(accuracies):
        noise = 0.2 * (torch.rand(pictures, generator=draws) - 0.5)
        chosen = (hardness + noise).argsort() < round(accuracy * pictures)
        judged_run(folder / f"seed-{seed}", chosen, seed=seed, **fields)
    return folder

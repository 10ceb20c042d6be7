"""What a run is and what it took: the parts of a page that need no picture."""

import json
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from cifarlab import text
from cifarlab.cost import training_operations
from cifarlab.data.loader import sizes_of_passes
from cifarlab.evaluation import Evaluation
from cifarlab.models import describe_model
from cifarlab.recipe import Recipe
from cifarlab.report.charts import Chart, Series, as_percent, line_chart
from cifarlab.report.judged import Judged
from cifarlab.run import Run
from cifarlab.statistics import proportion_interval

Facts = dict[str, str]
PREFIXES = ("", "thousand", "million", "billion", "trillion", "thousand trillion", "million trillion")


@dataclass(frozen=True)
class Result:
    """The result, and what has to be said with it."""

    sentence: str
    accuracy: str
    interval: str
    right: str
    notes: tuple[str, ...]


def pictures_of(evaluation: Evaluation, data: str) -> str:
    return f"{evaluation.n:,} {evaluation.split} pictures of {data}"


def interval_text(right: int, n: int) -> str:
    """Wilson's 95 % interval: `65.7 to 67.5 %`."""
    low, high = proportion_interval(right, n)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def result(judged: Judged) -> Result:
    evaluation, run = judged.evaluation, judged.run
    right = int(judged.is_right.sum())
    accuracy, interval = text.percent(evaluation.accuracy, 2), interval_text(right, evaluation.n)
    of = pictures_of(evaluation, run.data["name"])
    return Result(
        sentence=f"{judged.name} gets {accuracy} of the {of} right; 95 % interval {interval}.",
        accuracy=accuracy,
        interval=interval,
        right=f"{right:,} of {evaluation.n:,}",
        notes=tuple(_notes(run, evaluation)),
    )


def _notes(run: Run, evaluation: Evaluation) -> list[str]:
    notes = [
        "The interval (Wilson's) is about the pictures: what this network would reach on other pictures of the same"
        f" kind. This is one training, seed {run.recipe.seed}: of how much another seed would differ it says nothing."
    ]
    if evaluation.is_uneven:
        sizes = [each.n for each in evaluation.classes]
        notes.append(
            f"The classes are uneven, {min(sizes):,} to {max(sizes):,} pictures, and large ones decide the accuracy."
            f" Every class counted alike, it is {text.percent(evaluation.macro_accuracy, 2)}, and F1"
            f" {text.percent(evaluation.macro_f1, 2)} (macro averages)."
        )
    if evaluation.validation_was_test:
        notes.append(
            "Validation was the test set in this recipe: its test figures were seen after every epoch. No epoch was"
            " chosen by them; the weights are the last epoch's."
        )
    published = run.recipe.published
    if published is not None:
        notes.append(
            f"The source reports {text.percent(published.accuracy, 2)} on its {published.split} set after"
            f" {text.count(published.epochs, 'epoch')}."
        )
    if run.imported is not None and not run.metrics:
        notes.append("The weights were imported; nothing was trained here.")
    elif not run.is_complete:
        notes.append(f"The training is not finished: {len(run.metrics)} of {run.recipe.epochs} epochs.")
    return notes


def _training_size(run: Run) -> str:
    """The height of the training pictures, pass by pass."""
    data, height = run.recipe.data, run.data["input_shape"][1]
    heights = [size.cropped(height) for size in sizes_of_passes(data.training_scales, data.training_crops)]
    stretches = [(each, len(list(passes))) for each, passes in groupby(heights)]
    return (
        ", ".join(f"{each} x {n}" if n > 1 else str(each) for each, n in stretches)
        + " pixels high, pass by pass"
    )


def recipe_facts(run: Run) -> Facts:
    recipe = run.recipe
    facts = {
        "Recipe": recipe.name,
        "Source": recipe.source,
        "Network": f"{recipe.model.name}: {recipe.network}",
        "Data": f"{run.data['name']}; {text.count(run.data['n_train'], 'picture')} trained on",
        "Validation": _validation(run),
        "Preparation": recipe.data.preparation,
        "Augmentation": _changed(recipe.augment) or "none",
        "Optimiser": _named(recipe.optimizer),
        "Schedule": _named(recipe.schedule),
        "Regularisation": _regularisation(recipe) or "none",
        "Batch size": f"{recipe.batch_size:,}",
        "Epochs": f"{len(run.metrics):,} of {recipe.epochs:,}",
        "Seed": str(recipe.seed),
    }
    if recipe.data.training_scales or recipe.data.training_crops:
        facts["Training size"] = _training_size(run)
    if any(recipe.data.training_skips):
        most = text.percent(max(recipe.data.training_skips), 0)
        facts["Left out"] = f"up to {most} of the pictures in a pass, easy ones"
    if recipe.data.sampling != "shuffled":
        facts["Sampling"] = recipe.data.sampling
    if recipe.loss.class_weights != "none":
        weights = recipe.loss.class_weights
        facts["Class weights"] = weights if isinstance(weights, str) else ", ".join(f"{w:g}" for w in weights)
    return facts | ({"Notes": recipe.notes} if recipe.notes else {})


def recipe_json(run: Run) -> str:
    return json.dumps(run.recipe.model_dump(mode="json"), indent=1, ensure_ascii=False)


def environment_facts(run: Run) -> Facts:
    environment = run.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    threads = text.count(environment["threads"], "thread")
    return {
        "Started": environment["started_utc"].replace("T", " ").replace("+00:00", " UTC"),
        "Device": f"{environment['device']}: {environment['device_name']}",
        "Processor": f"{environment['processor']}, {text.count(environment['cores'], 'core')}, {threads} used",
        "Platform": environment["platform"],
        "Versions": versions,
        "Command": " ".join(environment["command"]),
        "Data checksum": run.data["checksum"],
    }


def cost_facts(judged: Judged) -> Facts:
    """Time and arithmetic. Energy was not measured and is not guessed."""
    run, rows = judged.run, judged.run.metrics
    layers = describe_model(judged.model, tuple(run.data["input_shape"]))
    forward = sum(layer["multiply_adds"] for layer in layers)
    parameters = sum(parameter.numel() for parameter in judged.model.parameters())
    facts = {
        "Parameters": f"{parameters:,}",
        "Multiply-adds for one picture": f"{forward:,}",
    }
    if rows:
        images = rows[-1]["epoch"] * run.data["n_train"]
        operations = in_words(training_operations(run, judged.model))
        speed = median(row["images_per_second"] for row in rows)
        facts |= {
            "Training time": text.duration(rows[-1]["elapsed_seconds"]),
            "Speed of training": f"{speed:,.0f} pictures a second (median epoch)",
            "Pictures seen in training": f"about {images:,}",
            "Arithmetic of the training": f"about {operations} floating-point operations",
        }
    return facts | {"Energy": "not measured"}


def in_words(value: float) -> str:
    """`3.4 trillion`, to two or three figures."""
    power = 0
    while value >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {PREFIXES[power]}".strip()


def learning_curves(run: Run) -> list[Chart]:
    """Loss and accuracy over the epochs."""
    rows = run.metrics
    validation = "test, used as validation" if run.recipe.data.validation == "test" else "validation"
    return [
        line_chart(
            quantity.capitalize(),
            [
                series_of(rows, f"{part}_{quantity}", name, style)
                for style, (part, name) in enumerate((("train", "training"), ("validation", validation)))
                if any(row[f"{part}_{quantity}"] is not None for row in rows)
            ],
            x_label="epoch",
            y_label=quantity,
            y_text=as_percent if quantity == "accuracy" else "{:.3g}".format,
            mark=None if run.best_epoch is None else (run.best_epoch, f"best epoch {run.best_epoch}"),
            description=_curve_in_words(rows, quantity, validation),
        )
        for quantity in ("accuracy", "loss")
    ]


def series_of(rows: list[dict[str, Any]], key: str, name: str, style: int) -> Series:
    return Series(name, [row["epoch"] for row in rows], [row[key] for row in rows], style=style)


def _curve_in_words(rows: list[dict[str, Any]], quantity: str, validation: str) -> str:
    form = text.percent if quantity == "accuracy" else text.number
    parts = [
        f"{name} from {form(rows[0][key])} in epoch 1 to {form(rows[-1][key])} in epoch {rows[-1]['epoch']}"
        for key, name in ((f"train_{quantity}", "training"), (f"validation_{quantity}", validation))
        if rows and rows[-1][key] is not None
    ]
    return "; ".join(parts) + "."


def _validation(run: Run) -> str:
    kind, n = run.recipe.data.validation, text.count(run.data["n_validation"], "picture")
    if kind == "none":
        return "none"
    return f"the TEST SET, {n}" if kind == "test" else f"{n} of the training set ({kind})"


def _named(part: Any) -> str:
    return ", ".join([part.name, *_fields(part)])


def _changed(part: Any) -> str:
    return ", ".join(_fields(part, skip_defaults=True))


def _fields(part: Any, skip_defaults: bool = False) -> list[str]:
    content = part.model_dump(
        mode="json", exclude={"name"}, exclude_defaults=skip_defaults, exclude_none=True
    )
    return [
        f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for name, value in content.items()
    ]


def _regularisation(recipe: Recipe) -> str:
    parts = (recipe.regularization, recipe.loss, recipe.ema, recipe.early_stopping)
    return "; ".join(changed for part in parts if (changed := _changed(part)))

"""A study: one recipe trained again and again with some fields at other values. Data, like a recipe, in a TOML file.

    recipe = "vgg3"                          # what is changed
    seeds = 3                                # runs of each point: seeds 0, 1, 2
    set.epochs = 20                          # for every run
    vary.batch_size = [32, 64, 128]          # per field a list of choices: every combination is a point
    vary.optimizer.learning_rate = [0.001, 0.01]

With `paired = true` the lists are read side by side instead. Several lines of a figure are several `[[series]]`, each
with its own `name`, `set` and `vary`. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from cifarlab import text
from cifarlab.errors import UserError, nearest, one_of
from cifarlab.plan import Planned, Standing
from cifarlab.recipe import Part, Recipe, flat, mistakes_in, override, settings_of, tied_to_total
from cifarlab.recipes import get_recipe
from cifarlab.run import chosen_row
from cifarlab.studies import STUDIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 120  # characters of a run's folder


class Series(Part):
    """Points that belong together: a line of the figure."""

    name: str = ""
    set: dict[str, Any] = Field(default={}, description="fields that are the same for every point")
    vary: dict[str, tuple[Any, ...]] = Field(description="per field a list of choices")
    paired: bool = Field(default=False, description="read the lists side by side, not every combination")
    published: tuple[float | None, ...] = Field(
        default=(), description="what the source reports, 0..1, by point"
    )
    published_split: Literal["test", "validation"] = "validation"

    @model_validator(mode="after")
    def lists_fit(self) -> Series:
        lengths = {name: len(values) for name, values in self.vary.items()}
        if not lengths or 0 in lengths.values():
            raise ValueError("vary needs at least one field, and every field at least one value")
        if self.paired and len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {n}" for name, n in lengths.items())
            raise ValueError(f"paired lists must be of one length, given: {told}")
        if self.published and len(self.published) != len(self.choices):
            raise ValueError(
                f"published needs a figure for each of {len(self.choices)} points, {len(self.published)} given"
            )
        return self

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The values of each point, by field."""
        combine = zip if self.paired else itertools.product
        return [dict(zip(self.vary, values, strict=True)) for values in combine(*self.vary.values())]


class Study(Part):
    """A recipe, what is changed in it, and how often each is trained."""

    name: str
    title: str = ""
    source: str = ""
    notes: str = ""
    recipe: str
    seeds: int = Field(default=1, ge=1, le=1000)
    set: dict[str, Any] = Field(default={}, description="fields that are the same for every run")
    series: tuple[Series, ...] = ()

    @model_validator(mode="after")
    def something_is_varied(self) -> Study:
        if not self.series:
            raise ValueError(
                "it varies nothing: give a list of choices, for example vary.batch_size = [32, 64]"
            )
        return self

    @property
    def fields(self) -> list[str]:
        """Every field that any series varies."""
        return list(dict.fromkeys(name for series in self.series for name in series.vary))


@dataclass(frozen=True)
class Point:
    """One combination of values: `recipe` is the base with them, at seed 0."""

    series: str
    values: dict[str, Any]
    recipe: Recipe
    published: float | None
    published_split: str


@dataclass(frozen=True)
class Reading:
    """What one run shows at a point. Accuracies 0..1; `epoch` is the one whose weights the recipe's rule takes."""

    run: str
    seed: int
    epoch: int
    steps: int
    validation_accuracy: float
    validation_loss: float
    train_accuracy: float
    elapsed_seconds: float


@dataclass(frozen=True)
class Outcome:
    """A point with what its runs show. `standings` has one entry for each seed."""

    point: Point
    readings: tuple[Reading, ...]
    standings: tuple[Standing, ...]


# Reading a study


def load_study(name_or_file: str) -> Study:
    """A study by its name, or from a TOML file.

    Raises:
        UserError: for an unknown name, a file that cannot be read, or a mistake in it.
    """
    path = STUDIES.get(name_or_file, Path(name_or_file))
    if not path.is_file():
        if path.suffix == ".toml":
            raise UserError(f"there is no file {path}")
        hint = nearest(name_or_file, STUDIES) or f"; there are {one_of(STUDIES)}, or give a .toml file"
        raise UserError(f"unknown study '{name_or_file}'{hint}")
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    return _study(content, path)


def _study(content: dict[str, Any], path: Path) -> Study:
    alone = [key for key in Series.model_fields if key in content and key not in ("name", "set")]
    if alone and "series" in content:
        raise UserError(
            f"{path}: {alone[0]} stands beside [[series]]: put it into one of them, or leave them out"
        )
    if alone:
        content["series"] = [{key: content.pop(key) for key in alone}]
    listed = content.get("series")
    for part in (content, *(listed if isinstance(listed, list) else ())):
        for key in ("set", "vary"):
            if isinstance(part, dict) and isinstance(part.get(key), dict):
                part[key] = flat(part[key])
    try:
        return Study.model_validate({"name": path.stem} | content)
    except ValidationError as error:
        raise UserError(f"{path} is not a study: {'; '.join(mistakes_in(error))}") from None


# From a study to its trainings


def points_of(study: Study, settings: Mapping[str, Any] | None = None) -> list[Point]:
    """The points of a study, with `settings` changed in every one of them.

    Raises:
        UserError: for an unknown recipe or field, a value out of range, or a recipe without validation pictures.
    """
    settings = settings or {}
    varied = [name for name in settings if name in study.fields or name == "seed"]
    if varied:
        raise UserError(f"{varied[0]} is what the study varies: it cannot be set")
    base = override(get_recipe(study.recipe), {**study.set, **settings})
    points = [point for series in study.series for point in _points_of(series, base)]
    if any(point.recipe.data.validation == "none" for point in points):
        raise UserError(
            f"a study compares by validation accuracy, and {study.recipe} has data.validation=none: set it to"
            " stratified, first or last"
        )
    return points


def _points_of(series: Series, base: Recipe) -> Iterator[Point]:
    published = series.published or (None,) * len(series.choices)
    for values, figure in zip(series.choices, published, strict=True):
        recipe = override(base, {**series.set, **values, "seed": 0})
        yield Point(series.name, values, recipe, figure, series.published_split)


def plan_study(
    study: Study,
    folder: Path,
    data: str = "cifar10",
    settings: Mapping[str, Any] | None = None,
    seeds: int | None = None,
) -> list[tuple[Point, list[Planned]]]:
    """The points of a study, each with the trainings that it is read from, one for each seed.

    Points that differ in the number of epochs alone share one training, planned for the most of them, unless their
    schedule is tied to the total.
    """
    points = points_of(study, settings)
    base = override(get_recipe(study.recipe), {**study.set, **(settings or {}), "seed": 0})
    keys = [_training_name(point.recipe, base) for point in points]
    longest: dict[str, Recipe] = {}
    for point, key in zip(points, keys, strict=True):
        known = longest.setdefault(key, point.recipe)
        if point.recipe.epochs > known.epochs:
            longest[key] = point.recipe
    return [
        (
            point,
            [
                Planned(folder / key / f"seed-{seed}", longest[key].model_copy(update={"seed": seed}), data)
                for seed in range(seeds or study.seeds)
            ],
        )
        for point, key in zip(points, keys, strict=True)
    ]


def _training_name(recipe: Recipe, base: Recipe) -> str:
    """The settings that differ from the base, as the name of a folder: equal trainings have equal names."""
    ours, theirs = settings_of(recipe), settings_of(base)
    if not tied_to_total(recipe.schedule):
        ours["epochs"] = theirs["epochs"]
    changed = {name: value for name, value in ours.items() if theirs.get(name) != value}
    name = ",".join(f"{field}={_word(value)}" for field, value in changed.items())
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]}"
    return name or "base"


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=("-", "-"))
    return "".join(c if c.isalnum() or c in "-._" else "" for c in text)


# What came out


def read_study(planned: Sequence[tuple[Point, Sequence[Planned]]]) -> list[Outcome]:
    """Each point with what its stored runs show."""
    outcomes = []
    for point, trainings in planned:
        readings = [_reading(training, point.recipe) for training in trainings]
        standings = [
            "finished" if reading else training.standing
            for reading, training in zip(readings, trainings, strict=True)
        ]
        found = tuple(reading for reading in readings if reading is not None)
        outcomes.append(Outcome(point, found, tuple(standings)))  # type: ignore[arg-type]
    return outcomes


def _reading(training: Planned, recipe: Recipe) -> Reading | None:
    """The run at the point's number of epochs; None when it has not come so far."""
    run = training.run
    if run is None:
        return None
    rows = run.metrics[: recipe.epochs]
    if len(rows) < recipe.epochs and not (rows and training.epochs_left == 0):
        return None
    last, chosen = rows[-1], chosen_row(rows, recipe)
    return Reading(
        run=str(run.path),
        seed=run.recipe.seed,
        epoch=chosen["epoch"],
        steps=last["step"],
        validation_accuracy=chosen["validation_accuracy"],
        validation_loss=chosen["validation_loss"],
        train_accuracy=last["train_accuracy"],
        elapsed_seconds=last["elapsed_seconds"],
    )


def study_table(study: Study, outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text: one line for each point."""
    varied = [name for name in study.fields if name != "epochs"]
    header = ["series"] if len(study.series) > 1 else []
    header += [_short(name, varied) for name in varied]
    header += [
        "epochs",
        "steps",
        "validation %",
        "runs",
        "range",
        "loss",
        "training %",
        "time",
    ]
    splits = {outcome.point.published_split for outcome in outcomes if outcome.point.published is not None}
    if splits:
        header.append(
            "published %" if splits == {"validation"} else f"published % ({one_of(sorted(splits))})"
        )
    rows = []
    for outcome in outcomes:
        settings = settings_of(outcome.point.recipe)
        row = [outcome.point.series] if len(study.series) > 1 else []
        row += [_value(settings.get(name)) for name in varied] + _figures(outcome)
        rows.append(row + ([_percent(outcome.point.published)] if splits else []))
    return header, rows


def _figures(outcome: Outcome) -> list[str]:
    epochs = f"{outcome.point.recipe.epochs:,}"
    diverged, runs = outcome.standings.count("diverged"), len(outcome.standings)
    told = f"{len(outcome.readings)} of {runs}" + (f", {diverged} diverged" if diverged else "")
    if not outcome.readings:
        return [epochs, "–", "–", told, "–", "–", "–", "–"]
    accuracies = [reading.validation_accuracy for reading in outcome.readings]
    seconds = sum(reading.elapsed_seconds for reading in outcome.readings) / len(outcome.readings)
    losses = [reading.validation_loss for reading in outcome.readings]
    trained = [reading.train_accuracy for reading in outcome.readings]
    return [
        epochs,
        f"{outcome.readings[0].steps:,}",
        text.mean_and_deviation(accuracies),
        told,
        text.span(accuracies),
        f"{sum(losses) / len(losses):.4f}",
        _percent(sum(trained) / len(trained)),
        text.duration(seconds),
    ]


def _short(name: str, among: Sequence[str]) -> str:
    """The last part of a field's name, where that is enough to tell it apart."""
    leaf = name.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == leaf for other in among) == 1
    return (leaf if alone and leaf != "name" else name).replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if type(value) is int else "none" if value is None else json.dumps(value)


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f}"


def study_page(study: Study, outcomes: Sequence[Outcome]) -> str:
    """The study as a Markdown page, with its figure beside it as study.png."""
    header, rows = study_table(study, outcomes)
    test = any(outcome.point.recipe.data.validation == "test" for outcome in outcomes)
    words = [f"# {study.title or study.name}", f"Recipe `{study.recipe}`."]
    words += [f"From {study.source}."] if study.source else []
    words += [study.notes] if study.notes else []
    words += ["In this recipe validation is the test set, seen while training."] if test else []
    table = text.markdown_table(header, rows)
    notes = (
        "Mean ± standard deviation over the runs of a point, and their range; loss, training accuracy (over the"
        " epoch, dropout on) and time are means. Times are wall-clock, beside whatever else the machine did. Written"
        f" from the runs in this folder by `cifarlab study {study.name}`."
    )
    return "\n\n".join([*words, table.rstrip(), notes, f"![{study.title or study.name}](study.png)"]) + "\n"


def study_figure(study: Study, outcomes: Sequence[Outcome]) -> Figure:
    """Validation accuracy against the first field of each series."""
    from cifarlab.figures import values_against

    lines: dict[str, list[tuple[Any, list[float]]]] = {}
    for outcome in outcomes:
        x, line = _place(study, outcome.point)
        accuracies = [reading.validation_accuracy for reading in outcome.readings]
        if accuracies:
            lines.setdefault(line, []).append((x, accuracies))
    first = next(iter(study.series[0].vary))
    published = [
        (_place(study, outcome.point)[0], outcome.point.published)
        for outcome in outcomes
        if outcome.point.published is not None
    ]
    return values_against(
        lines,
        x_name=_short(first, study.fields),
        y_name="validation accuracy",
        title=study.title or study.name,
        published=published,
    )


def _place(study: Study, point: Point) -> tuple[Any, str]:
    """A point's place on the axis, and the line that it is on."""
    series = next(each for each in study.series if each.name == point.series)
    (_, x), *others = point.values.items()
    if series.paired:
        others = []
    told = ", ".join(f"{_short(name, study.fields)} {_value(value)}" for name, value in others)
    x = x if isinstance(x, int | float | str) and not isinstance(x, bool) else _value(x)
    return x, ", ".join(part for part in (series.name, told) if part) or "validation accuracy"

"""A search space: which recipe fields a search may change, and to what. Data, in a TOML file; imports nothing heavy.

    batch_size = [32, 64, 128]                                        # a list of choices
    optimizer.learning_rate = {low = 0.001, high = 0.1, log = true}   # a range, both ends in it
    optimizer.name = ["sgd", "adam"]
    optimizer.momentum = {low = 0.5, high = 0.95}                     # where the chosen optimiser has it

A field that only some of the chosen kinds have (`momentum` above) is set for those alone.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarlab.errors import UserError, nearest
from cifarlab.recipe import Recipe, flat, override

MOST_COMBINATIONS = 500  # that are tried before a search; of a larger space these many are drawn
YARDSTICK = {
    "seed": "finalists are trained with several seeds anyway",
    "epochs": "trials are compared epoch by epoch: set it for all with --epochs",
    "device": "it decides no result: set it with --set",
    "data.validation": "trials are compared on the same validation pictures: set it for all with --set",
    "data.fold": "trials are compared on the same validation pictures: set it for all with --set",
}


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both of them in it; with `log` every factor is as likely as any other."""

    low: float
    high: float
    log: bool = False
    is_integer: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


Dimension = Choices | Range
Space = Mapping[str, Dimension]


def read_space(path: Path, recipe: Recipe) -> dict[str, Dimension]:
    """The space in a TOML file, checked against `recipe`: every combination of it can be trained.

    Raises:
        UserError: for a file that cannot be read; else naming every unknown field and every wrong value at once.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    return parse_space(content, recipe, str(path))


def parse_space(content: Mapping[str, Any], recipe: Recipe, origin: str) -> dict[str, Dimension]:
    """As `read_space`, from nested mappings. `origin` names them in messages."""
    mistakes: list[str] = []
    space: dict[str, Dimension] = {}
    for field, given in _leaves(content):
        dimension = _dimension(field, given)
        if isinstance(dimension, str):
            mistakes.append(dimension)
        else:
            space[field] = dimension
    mistakes += [mistake for field in space for mistake in _mistakes_of(field, space, recipe)]
    if not space and not mistakes:
        mistakes.append("it names no field: for example optimizer.learning_rate = [0.01, 0.001]")
    if mistakes:
        raise UserError(f"{origin}: {'; '.join(dict.fromkeys(mistakes))}")
    space = {field: _typed(field, dimension, recipe, space) for field, dimension in space.items()}
    _check_combinations(space, recipe, origin)
    return space


def choose_values(space: Space, recipe: Recipe, choose: Callable[[str, Dimension], Any]) -> dict[str, Any]:
    """A value for every field that the chosen kinds have: kinds (`optimizer.name` and so on) are chosen first."""
    values = {field: choose(field, space[field]) for field in space if field.endswith(".name")}
    there = flat(override(recipe, values).model_dump(mode="json"))
    for field, dimension in space.items():
        if field in there and field not in values:
            values[field] = choose(field, dimension)
    return values


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, given in content.items():
        if isinstance(given, Mapping) and not {"low", "high", "log"} & set(given):
            yield from _leaves(given, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", given


def _dimension(field: str, given: Any) -> Dimension | str:
    """The dimension, or what is wrong with how it is written."""
    if isinstance(given, list):
        texts = [json.dumps(value) for value in given]
        if not given or len(set(texts)) < len(texts):
            return f"{field} {'has no choices' if not given else 'names a choice twice'}"
        return Choices(tuple(given))
    if not isinstance(given, Mapping):
        return f"{field} should be a list of choices, or low and high, {given!r} given"
    unknown = [name for name in given if name not in ("low", "high", "log")]
    if unknown:
        hint = nearest(unknown[0], ("low", "high", "log"))
        return f"{field}: unknown '{unknown[0]}'{hint}; a range has low, high, log"
    low, high, log = given.get("low"), given.get("high"), given.get("log", False)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        return f"{field} needs low and high, both numbers"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):  # type: ignore[arg-type]
        return f"{field}: low should be below high, {low} and {high} given"
    if not isinstance(log, bool):
        return f"{field}: log should be true or false, {log!r} given"
    if log and low <= 0:  # type: ignore[operator]
        return f"{field}: low should be above 0 with log = true, {low} given"
    return Range(low, high, log)  # type: ignore[arg-type]


def _mistakes_of(field: str, space: Space, recipe: Recipe) -> Iterator[str]:
    for fixed, reason in YARDSTICK.items():
        if (
            field == fixed
            or field.startswith((f"{fixed}.", f"{fixed}_"))
            or (fixed == "data.fold" and field == "data.folds")
        ):
            yield f"{field} cannot be searched: {reason}"
            return
    for value in space[field].ends:
        alone = _mistake(recipe, {field: value})
        if alone and not _fits_somewhere(field, value, space, recipe):
            yield alone


def _fits_somewhere(field: str, value: Any, space: Space, recipe: Recipe) -> bool:
    """Whether a value that the recipe itself does not take is taken with other values of the space."""
    others = {name: dimension for name, dimension in space.items() if name != field}
    return any(
        _mistake(recipe, values | {field: value}) is None for values in _combinations(others, recipe, most=50)
    )


def _mistake(recipe: Recipe, values: Mapping[str, Any]) -> str | None:
    try:
        override(recipe, values)
    except UserError as error:
        return str(error)
    return None


def _typed(field: str, dimension: Dimension, recipe: Recipe, space: Space) -> Dimension:
    """A range of a field that takes whole numbers only is one of whole numbers."""
    if isinstance(dimension, Choices):
        return dimension
    between = math.floor(dimension.low) + 0.5
    takes_fractions = _mistake(recipe, {field: between}) is None or _fits_somewhere(
        field, between, space, recipe
    )
    return Range(dimension.low, dimension.high, dimension.log, is_integer=not takes_fractions)


def _combinations(space: Space, recipe: Recipe, most: int) -> Iterator[dict[str, Any]]:
    """Combinations of choices and of the ends of ranges: all of them, or `most` drawn ones."""
    ends = [dimension.ends for dimension in space.values()]
    drawn = random.Random(0)
    if math.prod(len(values) for values in ends) <= most:
        plans: Iterator[tuple[Any, ...]] = itertools.product(*ends)
    else:
        plans = (tuple(drawn.choice(values) for values in ends) for _ in range(most))
    for plan in plans:
        planned = dict(zip(space, plan, strict=True))
        try:
            yield choose_values(space, recipe, lambda field, _: planned[field])  # noqa: B023  # used at once
        except UserError:  # kinds that do not go together
            yield planned


def _check_combinations(space: Space, recipe: Recipe, origin: str) -> None:
    for values in _combinations(space, recipe, MOST_COMBINATIONS):
        mistake = _mistake(recipe, values)
        if mistake:
            told = ", ".join(f"{field}={json.dumps(value)}" for field, value in values.items())
            raise UserError(f"{origin}: {told} cannot be trained together: {mistake}")

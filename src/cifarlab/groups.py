"""Runs as groups: several seeds of one recipe on the same data are one experiment."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarlab.errors import UserError
from cifarlab.recipe import WORDS, Recipe, flat
from cifarlab.run import Run, is_run


@dataclass(frozen=True)
class Group:
    """Runs whose recipes are equal but for seed, fold and device, on the same data."""

    name: str
    runs: tuple[Run, ...]


def runs_under(paths: Sequence[str | Path]) -> list[Run]:
    """The runs at `paths`: each a run, a group, or a folder of runs at any depth. Each once, by name.

    Raises:
        UserError: when a path does not exist or holds no run.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"there is nothing at {path}: give a run, or a folder of runs")
        below = sorted(_run_folders(path), key=_as_people_sort)
        if not below:
            raise UserError(f"no run is in {path}: a run is a folder that holds recipe.json")
        for folder in below:
            found.setdefault(folder.resolve(), Run(folder))
    return list(found.values())


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """`runs` as groups, in the order in which each first appears.

    A group is called after its recipe; where recipes of one name differ, by the fewest fields that tell them apart.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(_experiment(run), sort_keys=True), []).append(run)
    experiments = [_experiment(group[0]) for group in members.values()]
    names = [_name(each, [e for e in experiments if e["name"] == each["name"]]) for each in experiments]
    return [Group(name, tuple(group)) for name, group in zip(names, members.values(), strict=True)]


def sample_key(run: Run) -> tuple[int, int | None]:
    """What makes a run a sample of its own in a group, and the pair of one in another: seed, and fold."""
    data = run.recipe.data
    return run.recipe.seed, data.fold if data.validation == "fold" else None


def check_same_pictures(runs: Sequence[Run], split: str) -> None:
    """See that the runs are judged on the same pictures; folds of a cross-validation each on their own.

    Raises:
        UserError: when their data are not the same, or validation is asked for and was cut in another way.
    """
    first = runs[0]
    validation: dict[int | None, Run] = {}
    for run in runs:
        if run.data["checksum"] != first.data["checksum"]:
            raise UserError(
                f"{first.path} and {run.path} are on different data ({first.data['name']}"
                f" {first.data['checksum'][:15]}, {run.data['name']} {run.data['checksum'][:15]}): their answers"
                " cannot be compared"
            )
        other = validation.setdefault(sample_key(run)[1], run)
        if split == "validation" and other.data["validation_indices"] != run.data["validation_indices"]:
            raise UserError(
                f"{other.path} and {run.path} validate on different pictures: compare them on the test set"
            )


def differing_fields(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Fields that decide a result and are not equal in both, by dotted name: (in a, in b). The device is left out."""
    in_a, in_b = (flat(each.model_dump(mode="json", exclude={"device", *WORDS})) for each in (a, b))
    names = dict.fromkeys([*in_a, *in_b])
    return {name: (in_a.get(name), in_b.get(name)) for name in names if in_a.get(name) != in_b.get(name)}


def _run_folders(top: Path) -> Iterator[Path]:
    for folder, inside, _files in os.walk(top):
        if is_run(Path(folder)):
            inside.clear()  # nothing in a run is another run
            yield Path(folder)


def _as_people_sort(path: Path) -> list[tuple[int, str]]:
    """seed-2 before seed-10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _experiment(run: Run) -> dict[str, Any]:
    """Every field that decides what a run is an example of, by dotted name."""
    excluded: dict[str, Any] = dict.fromkeys(("seed", "device", *WORDS), True) | {"data": {"fold"}}
    fields = flat(run.recipe.model_dump(mode="json", exclude=excluded))
    return fields | {"on": run.data["name"], "checksum": run.data["checksum"]}


def _name(experiment: dict[str, Any], namesakes: list[dict[str, Any]]) -> str:
    telling: list[str] = []
    for field in dict.fromkeys(name for each in namesakes for name in each):
        if len(_labels(namesakes, [*telling, field])) > len(_labels(namesakes, telling)):
            telling.append(field)
    label = ", ".join(f"{field}={_short(experiment[field])}" for field in telling if field in experiment)
    return f"{experiment['name']} ({label})" if label else experiment["name"]


def _labels(experiments: list[dict[str, Any]], fields: list[str]) -> set[str]:
    return {json.dumps([each.get(field) for field in fields]) for each in experiments}


def _short(value: Any) -> str:
    if isinstance(value, str) and value.startswith("sha256:"):
        return value[:15]
    return value if isinstance(value, str) else json.dumps(value)

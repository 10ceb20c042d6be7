"""Runs as groups."""

from pathlib import Path
from typing import Any

import pytest

from cifarlab.errors import UserError
from cifarlab.groups import group_runs, runs_under
from cifarlab.recipe import override
from cifarlab.recipes import get_recipe
from cifarlab.run import Run


def make_run(
    path: Path, recipe: str = "demo", data: str = "demo", checksum: str = "sha256:1", **fields: Any
) -> Run:
    chosen = override(get_recipe(recipe), {name.replace("__", "."): value for name, value in fields.items()})
    return Run.create(path, chosen, {}, {"name": data, "checksum": checksum})


def names(paths: list[Path]) -> list[str]:
    return [group.name for group in group_runs(runs_under(paths))]


def test_runs_are_found_at_any_depth_once_and_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 0):
        make_run(tmp_path / "vgg" / f"seed-{number}", seed=number)
    alone = make_run(tmp_path / "alone")
    (tmp_path / "vgg" / "seed-0" / "inner").mkdir()
    make_run(tmp_path / "vgg" / "seed-0" / "inner" / "run")  # within a run: no business of ours
    found = runs_under([tmp_path / "vgg", alone.path, tmp_path])
    assert [run.path.name for run in found] == ["seed-0", "seed-2", "seed-10", "alone"]


def test_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match="there is nothing at"):
        runs_under([tmp_path / "missing"])
    with pytest.raises(UserError, match="no run is in"):
        runs_under([tmp_path])


def test_seeds_and_devices_are_one_group_and_all_else_is_another(tmp_path):
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, device__threads=1)
    make_run(tmp_path / "c", "vgg1", seed=0)
    make_run(tmp_path / "d", epochs=99)
    groups = group_runs(runs_under([tmp_path]))
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "b"], ["c"], ["d"]]


def test_groups_of_one_recipe_are_told_apart_by_the_fewest_fields(tmp_path):
    make_run(tmp_path / "a", epochs=5)
    make_run(tmp_path / "b", epochs=6, augment__flip=0.25)
    make_run(tmp_path / "c", epochs=6, augment__flip=0.75, batch_size=16)
    make_run(tmp_path / "d", "vgg1")
    assert names([tmp_path]) == [
        "demo (augment.flip=0.5)",
        "demo (augment.flip=0.25)",
        "demo (augment.flip=0.75)",
        "vgg1",
    ]


def test_other_data_is_another_group(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", data="cifar10", checksum="sha256:2")
    make_run(tmp_path / "c", data="cifar10", checksum="sha256:3")
    assert len(set(names([tmp_path]))) == 3
    assert names([tmp_path / "a", tmp_path / "b"]) == ["demo (on=demo)", "demo (on=cifar10)"]

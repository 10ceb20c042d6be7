"""`cifarlab reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.data import open_source
from cifarlab.cli.options import DataDir, JsonAndProgress, Plan
from cifarlab.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.claims import Tested
    from cifarlab.cli.queue import Cost
    from cifarlab.plan import Planned
    from cifarlab.recipe import Recipe
    from cifarlab.reproduction import Entry


def reproduce(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="By default every published one.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", min=1, help="Runs of each recipe: seeds 0 to N-1.")
    ] = 1,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", min=1, help="Instead of each recipe's own number.")
    ] = None,
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Where the runs are, and the tables are written.")
    ] = Path("results"),
    claims: Annotated[
        bool, typer.Option("--claims", help="Test the write-ups' twelve claims on the runs, too.")
    ] = False,
    plan: Plan = False,
    no_train: Annotated[
        bool,
        typer.Option("--no-train", help="Train nothing: evaluate what is finished, write the tables anew."),
    ] = False,
    device: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="device.FIELD=VALUE", help="Where to compute: device.* alone."),
    ] = None,
    data_dir: DataDir = None,
    as_json: JsonAndProgress = False,
) -> None:
    """Train the published recipes, evaluate them, and set what came out beside what was published. Ctrl-C saves; the
    same command goes on, and trains nothing twice.

    \b
    Examples:
      cifarlab reproduce vgg1 --plan
      cifarlab reproduce cnn4 cnn4-dropout cnn4-bn --seeds 3
      cifarlab reproduce --no-train --claims
    """
    from cifarlab.reproduction import planned_runs, published_recipes

    chosen = published_recipes(recipes or [])
    console = screen.open_console(as_json)
    planned = planned_runs(chosen, results, seeds, epochs, _device_settings(device or []))
    if plan or not no_train:
        cost = _train(console, planned, results, data_dir, plan)
        if plan:
            if as_json:
                screen.write_json(cost.to_dict())
            return
    _evaluate_finished(console, chosen, results, data_dir)
    entries, left_out = _write_tables(chosen, results)
    tested = _test_claims(results) if claims else []
    if as_json:
        screen.write_json(_document(entries, left_out, tested, claims))
        return
    _print_entries(console, entries, left_out)
    if claims:
        _print_claims(console, tested)
    names = ["reproduction.md", *(["claims.md"] if claims else [])]
    console.print("\nwritten: " + ", ".join(str(results / name) for name in names), markup=False)


def _device_settings(assignments: list[str]) -> dict[str, Any]:
    """The checked device settings of `--set`: a reproduction changes nothing else."""
    from cifarlab.recipe import override, parse_assignments
    from cifarlab.recipes import RECIPES

    given = parse_assignments(assignments)
    checked = override(next(iter(RECIPES.values())), given).device
    other = [name for name in given if not name.startswith("device.")]
    if other:
        raise UserError(
            f"--set {other[0]} would be another recipe, no reproduction: here only device.* can be set"
            " (`cifarlab train` and `cifarlab study` change anything)"
        )
    return {name.removeprefix("device."): getattr(checked, name.removeprefix("device.")) for name in given}


# Training and judging


def _train(
    console: Console, planned: Sequence[Planned], results: Path, data_dir: Path | None, plan: bool
) -> Cost:
    from cifarlab.cli.queue import carry_out, cost_of, print_cost, unfinished

    source = open_source("cifar10", data_dir) if unfinished(planned) else None
    cost = cost_of(planned, source)
    print_cost(console, cost)
    for name, reason in cost.refused.items():
        console.print(f"left out: {name}: {reason}", markup=False)
    if not plan:
        possible = [each for each in planned if each.recipe.name not in cost.refused]
        for each in carry_out(console, possible, source):
            _evaluate_finished(console, [each.recipe], results, data_dir)
    return cost


def _evaluate_finished(
    console: Console, recipes: Sequence[Recipe], results: Path, data_dir: Path | None
) -> None:
    """Judge finished runs on the test set and on the published split. Stored logits answer where there are any."""
    from cifarlab.recipes import RECIPES
    from cifarlab.reproduction import finished_runs, published_of

    for recipe in recipes:
        for run in finished_runs(results / recipe.name, RECIPES[recipe.name])[0]:
            if not run.weights_path(run.default_weights).exists():
                continue  # a record: judged when it still had weights
            from cifarlab.evaluation import evaluate

            for split in dict.fromkeys(("test", published_of(recipe).split)):
                result = evaluate(run, split=split, data_dir=data_dir)
                if not result.reused:
                    told = f"{run.path}: {text.percent(result.accuracy, 2)} on {split}"
                    console.print(told, markup=False)


# What came out


def _write_tables(recipes: Sequence[Recipe], results: Path) -> tuple[list[Entry], list[str]]:
    """The page has every published recipe, also when some were asked for; given back are these."""
    from cifarlab.files import write_atomic
    from cifarlab.reproduction import published_recipes, read_results, results_page

    entries, left_out = read_results(results, published_recipes())
    results.mkdir(parents=True, exist_ok=True)
    write_atomic(results / "reproduction.md", results_page(entries).encode())
    names = {recipe.name for recipe in recipes}
    return [entry for entry in entries if entry.recipe.name in names], left_out


def _test_claims(results: Path) -> list[Tested]:
    from cifarlab.claims import claims_page, test_claims
    from cifarlab.files import write_atomic

    tested = test_claims(results)
    write_atomic(results / "claims.md", claims_page(tested, results).encode())
    return tested


def _print_entries(console: Console, entries: Sequence[Entry], left_out: Sequence[str]) -> None:
    from cifarlab.reproduction import HEADER, entry_cells

    shown = ("recipe", "published %", "ours %", "n (seeds)", "epochs", "verdict")
    rows = [dict(zip(HEADER, [entry.recipe.name, *entry_cells(entry)], strict=True)) for entry in entries]
    console.print()
    lines = text.aligned([shown, *([row[name] for name in shown] for row in rows)])
    console.print(lines[0], style="dim", markup=False)
    for line in lines[1:]:
        console.print(line, markup=False)
    if any("†" in row["split"] for row in rows):
        console.print(f"\nvalidation was the test set, as published: {_saw_test(rows)}", markup=False)
    for line in left_out:
        console.print(f"left out: {line}", markup=False)
    for entry in entries:
        if entry.far_below:
            console.print(
                f"note: {entry.recipe.name} is more than 2 points below the published figure: take it for a mistake"
                " until shown otherwise",
                markup=False,
            )


def _saw_test(rows: Sequence[dict[Any, str]]) -> str:
    return ", ".join(dict.fromkeys(row["recipe"] for row in rows if "†" in row["split"]))


def _print_claims(console: Console, tested: Sequence[Tested]) -> None:
    untested = [str(each.claim.number) for each in tested if each.verdict == "not tested"]
    for each in (each for each in tested if each.verdict != "not tested"):
        console.print(f"\n{each.claim.number}. {each.claim.text}: {each.verdict}", markup=False, style="bold")
        for result in each.results:
            if result.found is not None:
                console.print(f"   {result.sentence}", markup=False)
    if untested:
        console.print(f"\nnot tested, for want of runs: claims {', '.join(untested)}", markup=False)


def _document(
    entries: Sequence[Entry], left_out: Sequence[str], tested: Sequence[Tested], claims: bool
) -> dict[str, Any]:
    from cifarlab.reproduction import entry_document

    document = {"recipes": [entry_document(entry) for entry in entries], "left_out": list(left_out)}
    return document | ({"claims": [each.to_dict() for each in tested]} if claims else {})

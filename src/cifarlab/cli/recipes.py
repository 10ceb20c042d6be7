"""`cifarlab recipes` and `cifarlab show`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.options import AsJson, RecipeName

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cifarlab.recipe import Recipe

CLASSES, INPUT_SHAPE = 10, (3, 32, 32)  # of every recipe so far
LETTERS = "C32: 3x3 convolution, 32 filters · P: 2x2 max-pool · F: flatten · D128: dense, 128 units"


def recipes(as_json: AsJson = False) -> None:
    """List what can be trained: network, published result, source.

    \b
    Example:
      cifarlab recipes
    """
    from cifarlab.recipes import RECIPES

    if as_json:
        screen.write_json([_recipe_row(recipe) for recipe in RECIPES.values()])
        return
    from rich.table import Table

    console = screen.open_console()
    by_source: dict[str, list[Recipe]] = {}
    for recipe in RECIPES.values():
        by_source.setdefault(recipe.source, []).append(recipe)
    name_width = max(len(name) for name in RECIPES)
    for source, group in by_source.items():
        console.print(f"[bold]{screen.escaped(source)}[/bold]", soft_wrap=False)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        table.add_column("recipe", min_width=name_width, no_wrap=True)
        table.add_column("published", justify="right", no_wrap=True, min_width=9)
        table.add_column("parameters", justify="right", no_wrap=True)
        table.add_column("network")
        for recipe in group:
            table.add_row(
                recipe.name,
                _published(recipe),
                f"{recipe.parameters:,}",
                screen.escaped(_network(recipe, group)),
            )
        console.print(table, soft_wrap=False)
        if any(_is_with_tta(recipe) for recipe in group):
            note = "* with test-time augmentation: answers averaged over several views of each picture"
            console.print(note, style="dim", soft_wrap=False)
        if any(recipe.data.validation == "test" for recipe in group):
            console.print(
                "These validate on the test set, as their source did.", style="dim", soft_wrap=False
            )
        console.print()
    console.print(LETTERS, style="dim", soft_wrap=False)
    console.print("Next: cifarlab show RECIPE, cifarlab train RECIPE")


def show(
    recipe: RecipeName,
    as_json: AsJson = False,
) -> None:
    """Show a recipe: every layer, and every setting by the name that --set takes.

    \b
    Example:
      cifarlab show vgg3-bn
    """
    from cifarlab.recipes import get_recipe

    chosen = get_recipe(recipe)
    from cifarlab.models import build_model, describe_model
    from cifarlab.transfer import freeze_for_epoch

    model = build_model(chosen.model, CLASSES, INPUT_SHAPE)
    freeze_for_epoch(chosen.finetune, model, 0)
    layers = describe_model(model, INPUT_SHAPE)
    if as_json:
        screen.write_json({"name": chosen.name, "layers": layers, "recipe": chosen.model_dump(mode="json")})
        return
    console = screen.open_console()
    console.print(f"[bold]{chosen.name}[/bold]  {screen.escaped(chosen.network)}", soft_wrap=False)
    console.print(screen.escaped(chosen.source), soft_wrap=False)
    if chosen.published:
        epochs = text.count(chosen.published.epochs, "epoch")
        how = " with test-time augmentation" if _is_with_tta(chosen) else ""
        accuracy = text.percent(chosen.published.accuracy, 2)
        console.print(f"published: {accuracy} on the {chosen.published.split} set after {epochs}{how}")
    if chosen.notes:
        console.print(screen.escaped(chosen.notes), soft_wrap=False)
    console.print()
    console.print(_layer_table(layers), soft_wrap=False)
    console.print(_totals(model, layers))
    console.print()
    console.print(_settings_table(chosen), soft_wrap=False)
    console.print(f"\nChange any of them: cifarlab train {chosen.name} --set epochs=5 --set batch_size=128")


def _network(recipe: Recipe, group: list[Recipe]) -> str:
    """The network, told as another one of the group and what is added to it where that is so."""
    for other in group:
        if recipe.network.startswith(f"{other.network}, "):
            return f"{other.name} with {recipe.network.removeprefix(f'{other.network}, ')}"
    return recipe.network


def _recipe_row(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "source": recipe.source,
        "published_accuracy": recipe.published.accuracy if recipe.published else None,
        "published_split": recipe.published.split if recipe.published else None,
        "test_time_views": recipe.test_time_views,
        "parameters": recipe.parameters,
        "trainable_parameters": recipe.trainable_parameters,
    }


def _published(recipe: Recipe) -> str:
    if recipe.published is None:
        return "–"
    return text.percent(recipe.published.accuracy, 2) + (" *" if _is_with_tta(recipe) else "")


def _is_with_tta(recipe: Recipe) -> bool:
    return recipe.published is not None and recipe.test_time_views != "none"


def _layer_table(layers: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column("output", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("multiply-adds", justify="right", no_wrap=True)
    for layer in layers:
        shape = " x ".join(str(n) for n in layer["output_shape"])
        counts = [f"{layer[key]:,}" if layer[key] else "" for key in ("parameters", "multiply_adds")]
        table.add_row(layer["name"], layer["type"], shape, *counts)
    return table


def _totals(model: Any, layers: list[dict[str, Any]]) -> str:
    trained = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    frozen = sum(tensor.numel() for tensor in model.parameters()) - trained
    kept = sum(tensor.numel() for tensor in model.buffers() if tensor.is_floating_point())
    statistics = f", {frozen:,} frozen" if frozen else ""
    statistics += f", {trained + frozen + kept:,} with batch norm's running statistics" if kept else ""
    operations = sum(layer["multiply_adds"] for layer in layers)
    return f"{trained:,} parameters to train{statistics}\n{operations:,} multiply-adds a picture"


def _settings_table(recipe: Recipe) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("meaning", style="dim")
    for name, value, meaning in _settings(recipe, ""):
        table.add_row(name, screen.escaped(_value(value)), screen.escaped(meaning))
    return table


def _settings(part: BaseModel, prefix: str) -> Iterator[tuple[str, Any, str]]:
    from pydantic import BaseModel

    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            if name != "published":
                yield from _settings(value, f"{prefix}{name}.")
        elif prefix or name in ("test_time_views", "batch_size", "epochs", "seed"):
            yield f"{prefix}{name}", value, field.description or ""


def _value(value: Any) -> str:
    import json

    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)

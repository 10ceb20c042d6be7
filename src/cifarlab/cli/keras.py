"""`cifarlab import-keras` and `cifarlab export-keras`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.data import open_source
from cifarlab.cli.options import AsJson, Data, DataDir, Settings
from cifarlab.errors import UserError


def import_keras(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Saved by Keras: .h5, .weights.h5 or .keras.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="The network; `cifarlab recipes` lists them.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run to make; default runs/<recipe>-s<seed>-<n>."),
    ] = None,
    data: Data = "cifar10",
    data_dir: DataDir = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Make a run of weights that Keras saved. It evaluates, predicts, and `cifarlab resume` trains it on.

    \b
    Example:
      cifarlab import-keras final_model.h5 --recipe vgg3 --out runs/from-keras
    """
    from cifarlab.recipe import override, parse_assignments
    from cifarlab.recipes import get_recipe
    from cifarlab.run import check_out

    overrides = parse_assignments(settings or [])
    chosen = override(get_recipe(recipe), overrides)
    check_out(out)
    if not file.exists():
        raise UserError(f"there is no file {file}")
    source = open_source(data, data_dir, recipe=chosen)
    from cifarlab import keras_io

    run = keras_io.import_keras(file, chosen, data=source, out=out, seed=chosen.seed)
    assert run.imported is not None
    if as_json:
        screen.write_json({"run": str(run.path), **run.imported})
        return
    console = screen.open_console()
    console.print(f"{run.path}: {recipe}, with the weights of {file}", markup=False)
    console.print(
        f"{run.imported['format']}, {text.count(len(run.imported['layers']), 'layer')},"
        f" SHA-256 {run.imported['sha256']}",
        markup=False,
    )
    console.print("\nNext:")
    console.print(f"  {text.command('evaluate', run.path)}", markup=False)
    console.print(
        f"  {text.command('resume', run.path)}          # trains it on: {text.count(run.recipe.epochs, 'epoch')}",
        markup=False,
    )


def export_keras(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="To write: NAME.keras, NAME.weights.h5 or NAME.h5.")
    ],
    weights: Annotated[
        str | None, typer.Option(metavar="best|last", help="By default those that the run's recipe names.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's weights as a file that Keras 3 loads.

    \b
    Examples:
      cifarlab export-keras runs/vgg3-s0-1 --out vgg3.keras
      cifarlab export-keras runs/vgg3-s0-1 --out vgg3.weights.h5
    """
    from cifarlab.run import Run, Weights

    opened = Run(run)
    from cifarlab import keras_io

    chosen: Weights = weights or opened.default_weights  # type: ignore[assignment]
    keras_io.export_keras(opened, out, weights=chosen)
    preparation = opened.load_preparation(chosen)
    if as_json:
        document = {"run": str(run), "file": str(out), "weights": chosen}
        screen.write_json(document | {"preparation": {"mean": preparation.mean, "std": preparation.std}})
        return
    console = screen.open_console()
    size = text.size(out.stat().st_size)
    console.print(f"{out}: {chosen} weights of {run}, {size}", markup=False)
    if out.name.endswith(".weights.h5"):
        how = f'model.load_weights("{out}"), for a model with the same layers'
    else:
        how = f'keras.models.load_model("{out}")'
    console.print(f"in Keras 3   {how}", markup=False)
    console.print(f"its inputs   {_inputs(preparation.mean, preparation.std)}", markup=False)


def _inputs(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """How pictures are prepared, in NumPy's words."""
    shape = "float32 (N, height, width, 3), RGB"
    if not any(mean) and set(std) == {255.0}:
        return f"pixels / 255, {shape}"
    numbers = (", ".join(f"{value:.6g}" for value in values) for values in (mean, std))
    return "(pixels - [{}]) / [{}], {}".format(*numbers, shape)

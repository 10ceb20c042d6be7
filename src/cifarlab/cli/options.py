"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead.")]
JsonAndProgress = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout instead; progress on stderr.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Where the data set is; beats CIFARLAB_DATA and the user's cache."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME|PATH",
        help="A data set, as demo, or where your own pictures are.",
    ),
]
LabelsFrom = Annotated[
    str | None,
    typer.Option(
        "--labels-from",
        metavar="PATTERN",
        help=r"Own pictures: labels from file names, as '(.+)_\d+' from cat_017.jpg.",
    ),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Own pictures: go on without those that cannot be read.")
]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name that `cifarlab recipes` lists.")]
Seed = Annotated[str | None, typer.Option("--seed", metavar="N", help="Of weights, order, augmentation.")]
Epochs = Annotated[str | None, typer.Option("--epochs", metavar="N", help="Passes over the data.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where to compute.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Say what is there and what the rest would take, stop.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Change a setting; `cifarlab show RECIPE` lists them all."
    ),
]

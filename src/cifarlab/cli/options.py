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
        "--data-dir", metavar="DIR", help="Where CIFAR-10 is; beats CIFARLAB_DATA and the user's cache."
    ),
]
Plan = Annotated[bool, typer.Option("--plan", help="Say what is there and what the rest would take, stop.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Change a setting; `cifarlab show RECIPE` lists them all."
    ),
]

"""The studies that come with cifarlab, each a TOML file as anybody can write one (`cifarlab.study`)."""

from pathlib import Path

STUDIES: dict[str, Path] = {name: Path(__file__).parent / f"{name}.toml" for name in ("batch-size", "epochs")}

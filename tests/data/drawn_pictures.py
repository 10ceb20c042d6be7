"""Pictures drawn for tests: smooth blotches of colour, each class of its own hue, no two alike."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """RGB, different for each seed."""
    knots = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(folder: Path, classes: dict[str, int], *, seed: int = 0, suffix: str = ".png") -> Path:
    """A folder for each class with so many pictures: `folder/rose/000.png` ..."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            draw(1000 * (seed + number) + index).save(folder / name / f"{index:03d}{suffix}")
    return folder

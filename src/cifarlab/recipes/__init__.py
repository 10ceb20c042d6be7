"""Every recipe by name, in one explicit table."""

from cifarlab.errors import UserError, nearest
from cifarlab.recipe import Recipe
from cifarlab.recipes import (
    brownlee,
    classification_notebook,
    deep_learning_lab,
    demo,
    fast,
    six_convolutions,
    trading,
)

SOURCES = (demo, brownlee, six_convolutions, deep_learning_lab, trading, classification_notebook, fast)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for source in SOURCES for recipe in source.RECIPES}

DEFAULT = "fast94"  # what is trained where no recipe is named
DEFAULT_MEMORY_BYTES = 3_000_000_000  # that its training may take: benchmarks/memory.py
SMALL_DEFAULT = "cnn4"  # in its place where less is free


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    if name not in RECIPES:
        raise UserError(
            f"unknown recipe '{name}'{nearest(name, RECIPES)} (`cifarlab recipes` lists all {len(RECIPES)})"
        )
    return RECIPES[name]

"""Every recipe by name, in one explicit table."""

from cifarlab.errors import UserError, nearest, one_of
from cifarlab.recipe import Recipe
from cifarlab.recipes import brownlee, demo

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*demo.RECIPES, *brownlee.RECIPES)}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    if name not in RECIPES:
        hint = nearest(name, RECIPES) or f"; known: {one_of(RECIPES)}"
        raise UserError(f"unknown recipe '{name}'{hint} (`cifarlab recipes` lists them)")
    return RECIPES[name]

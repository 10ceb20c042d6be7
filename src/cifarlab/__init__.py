"""cifarlab trains, judges and uses classifiers of small images.

    import cifarlab

    run = cifarlab.train("vgg3-bn", seed=1)
    print(cifarlab.evaluate(run).accuracy)
    print(cifarlab.load_predictor(run).predict("photo.jpg"))

Names are loaded when they are first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cifarlab.process import prepare_environment

if TYPE_CHECKING:
    from cifarlab.classifier import CifarlabClassifier
    from cifarlab.comparison import compare
    from cifarlab.errors import DivergedError, Interrupted, UserError
    from cifarlab.evaluation import Evaluation, evaluate
    from cifarlab.group_training import train_group
    from cifarlab.keras_io import export_keras, import_keras
    from cifarlab.prediction import Prediction, load_predictor
    from cifarlab.recipe import Recipe
    from cifarlab.recipes import RECIPES, get_recipe
    from cifarlab.run import Run
    from cifarlab.training import resume, train

__version__ = "0.1.0"

prepare_environment()  # before torch is loaded

_HOMES = {
    "CifarlabClassifier": "classifier",
    "DivergedError": "errors",
    "Evaluation": "evaluation",
    "Interrupted": "errors",
    "Prediction": "prediction",
    "RECIPES": "recipes",
    "Recipe": "recipe",
    "Run": "run",
    "UserError": "errors",
    "compare": "comparison",
    "evaluate": "evaluation",
    "export_keras": "keras_io",
    "get_recipe": "recipes",
    "import_keras": "keras_io",
    "load_predictor": "prediction",
    "resume": "training",
    "train": "training",
    "train_group": "group_training",
}

__all__ = [
    "RECIPES",
    "CifarlabClassifier",
    "DivergedError",
    "Evaluation",
    "Interrupted",
    "Prediction",
    "Recipe",
    "Run",
    "UserError",
    "compare",
    "evaluate",
    "export_keras",
    "get_recipe",
    "import_keras",
    "load_predictor",
    "resume",
    "train",
    "train_group",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cifarlab' has no attribute {name!r}")
    return getattr(import_module(f"cifarlab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

"""`CifarlabClassifier`: a recipe as a scikit-learn estimator, for grids, pipelines and cross-validation."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from cifarlab.recipe import Recipe

PREDICTION_BATCH = 500  # pictures


class CifarlabClassifier(ClassifierMixin, BaseEstimator):
    """Trains a recipe in `fit`, on all that it is given, and keeps the network in memory.

    Pictures may be (n, height, width, 3), grey (n, height, width), or flat rows (n, features), as pipelines give them.
    uint8 values are taken as they are. Any others are stretched to 0..255 by the smallest and the largest value in
    training, and rounded: the networks are fed with 8 bits.

    Parameters:
        recipe: a name that `cifarlab recipes` lists, or a `Recipe`.
        epochs, batch_size, learning_rate: of the recipe's fields, those that grids try most; None: the recipe's own.
        overrides: other fields by dotted name, for example `{"augment.flip": 0.5}`.
        image_shape: (height, width) or (height, width, 3) of flat rows; None: a square where the number of features is
            that of one, grey or RGB, else a picture of one row, which dense networks alone take.
        class_weight: as in scikit-learn None, "balanced" or weights by label, 1 where none is given: the field
            `loss.class_weights`.
        init_from: a run to begin with the weights of, or `shipped`: those that come with the package.
        random_state: the recipe's seed; None: 0. The same seed gives the same network.
        out: a directory for the run, of one `fit`; None: none is kept.

    Attributes:
        classes_: the labels, sorted.
        network_, preparation_: what predicts; `run_`: where `out` is given.
        image_shape_, pixel_range_: how rows and values became pictures.

    Validation is `none` unless `overrides` say otherwise, because scikit-learn cuts the data itself; the weights are
    those of the last epoch.
    """

    def __init__(
        self,
        recipe: str | Recipe = "vgg1",
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        overrides: Mapping[str, Any] | None = None,
        image_shape: tuple[int, ...] | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        init_from: str | Path | None = None,
        random_state: int | None = None,
        out: str | Path | None = None,
    ) -> None:
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.overrides = overrides
        self.image_shape = image_shape
        self.class_weight = class_weight
        self.init_from = init_from
        self.random_state = random_state
        self.out = out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: Any, y: Any) -> CifarlabClassifier:
        """Train on pictures X and labels y (n,), numbers or names.

        Raises:
            ValueError: for data that is no pictures and labels, or of one class.
            UserError: for a recipe that is unknown or does not fit the pictures.
        """
        X, y = self._checked(X, y)
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"fit needs two classes or more, one class is given: {self.classes_[0]!r}")
        self.image_shape_ = self._shape_of(X)
        self.pixel_range_ = None if X.dtype == np.uint8 else (float(X.min()), float(X.max()))
        self._train(self._pictures(X), places)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """float64 (n, classes): probabilities, in the order of `classes_`."""
        import torch

        from cifarlab.data.sources import resized

        check_is_fitted(self)
        X, _ = self._checked(X)
        pictures = self._pictures(X)
        if pictures.shape[1:3] != (
            self.preparation_.height,
            self.preparation_.width,
        ):  # the recipe's input.size
            pictures = resized(pictures, self.preparation_.height, self.preparation_.fit)
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        device = next(self.network_.parameters()).device
        with torch.inference_mode():
            logits = [
                self.network_(self.preparation_(batch.to(device))) for batch in images.split(PREDICTION_BATCH)
            ]
        return torch.cat(logits).double().softmax(1).cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each picture."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def _train(self, images: np.ndarray, labels: np.ndarray) -> None:
        from cifarlab.data.arrays import from_arrays
        from cifarlab.job import prepare
        from cifarlab.training import fit, start

        source = from_arrays(images, labels, classes=[str(place) for place in range(len(self.classes_))])
        job = prepare(self._recipe(), source)
        with tempfile.TemporaryDirectory() as temporary:
            run = start(job, self.out or Path(temporary) / "run")
            for _ in fit(job, run, log=()):
                pass
            self.network_, self.preparation_ = run.load_model(), run.load_preparation()
            if self.out is not None:
                self.run_ = run

    def _recipe(self) -> Recipe:
        from cifarlab.recipe import override
        from cifarlab.recipes import get_recipe

        recipe = get_recipe(self.recipe) if isinstance(self.recipe, str) else self.recipe
        named = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer.learning_rate": self.learning_rate,
            "loss.class_weights": self._class_weights(),
            "finetune.init_from": None if self.init_from is None else str(self.init_from),
        }
        given = {field: value for field, value in named.items() if value is not None}
        seed = 0 if self.random_state is None else self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(2**31)
        return override(
            recipe, {"data.validation": "none", "seed": int(seed)} | given | dict(self.overrides or {})
        )

    def _class_weights(self) -> str | list[float] | None:
        if self.class_weight is None or isinstance(self.class_weight, str):
            return self.class_weight
        return [float(self.class_weight.get(label, 1.0)) for label in self.classes_.tolist()]

    def _checked(self, X: Any, y: Any = None) -> tuple[np.ndarray, Any]:
        """X as an array of numbers with two dimensions or more; rows with the columns of training."""
        if getattr(X, "ndim", 2) <= 2:
            reset = y is not None
            checked = validate_data(self, X, *([y] if reset else []), reset=reset)
            X, y = checked if reset else (checked, None)
        else:
            X = check_array(X, allow_nd=True)
            if y is not None:
                from sklearn.utils.validation import check_consistent_length, column_or_1d

                y = column_or_1d(y, warn=True)
                check_consistent_length(X, y)
        if X.dtype.kind not in "iufb":
            raise ValueError(f"X should be numbers, {X.dtype} given")
        return X, y

    def _shape_of(self, X: np.ndarray) -> tuple[int, int, int]:
        """(height, width, channels) of X's pictures."""
        given = X.shape[1:] if X.ndim > 2 else self.image_shape
        if given is not None:
            height, width, *channels = given
            shape = (int(height), int(width), int(channels[0]) if channels else 1)
            if X.ndim == 2 and math.prod(shape) != X.shape[1]:
                raise ValueError(
                    f"image_shape {self.image_shape} has {math.prod(shape)} values, X has {X.shape[1]}"
                )
            if len(channels) > 1 or shape[2] not in (1, 3):
                raise ValueError(
                    f"X should be pictures (n, height, width, 3) or (n, height, width), {X.shape} given"
                )
            return shape
        for channels in (1, 3):
            side = math.isqrt(X.shape[1] // channels)
            if side > 1 and channels * side * side == X.shape[1]:
                return side, side, channels
        return 1, X.shape[1], 1

    def _pictures(self, X: np.ndarray) -> np.ndarray:
        """uint8 (n, height, width, 3)."""
        if X.ndim > 2 and self._shape_of(X) != self.image_shape_:
            raise ValueError(f"X has pictures of {X.shape[1:]}, and fit had {self.image_shape_}")
        if self.pixel_range_ is None and X.dtype != np.uint8:
            low, high = 0.0, 255.0  # trained on uint8
        elif self.pixel_range_ is None:
            low, high = None, None
        else:
            low, high = self.pixel_range_
        if low is not None and high is not None:
            scale = 255.0 / (high - low) if high > low else 0.0
            X = np.clip(np.round((X.astype(np.float64) - low) * scale), 0, 255).astype(np.uint8)
        pictures = X.reshape(len(X), *self.image_shape_)
        return np.array(np.broadcast_to(pictures, (*pictures.shape[:3], 3)), order="C")

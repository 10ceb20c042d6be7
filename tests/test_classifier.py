"""A recipe as a scikit-learn estimator."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from cifarlab import CifarlabClassifier
from cifarlab.errors import UserError
from cifarlab.models.specs import MLP, VGG
from cifarlab.recipe import Adam, Augment, Device, Recipe

DENSE = Recipe(
    name="dense",
    source="a test",
    network="D32 out",
    model=MLP(widths=(32,)),
    optimizer=Adam(learning_rate=0.01),
    device=Device(threads=1),
    batch_size=32,
    epochs=3,
)
CONVOLUTIONS = DENSE.model_copy(update={"model": VGG(widths=(4,), dense=16), "augment": Augment(shift=0.1)})
# Of scikit-learn's checks, those that go through what is ours.
CHECKS = {
    "check_class_weight_classifiers",
    "check_estimators_pickle",
    "check_fit2d_1sample",
    "check_classifiers_one_label",
    "check_n_features_in",
    "check_estimators_nan_inf",
    "check_no_attributes_set_in_init",
    "check_supervised_y_2d",
    "check_classifiers_regression_target",
}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Rows of 64 grey levels 0..16, float64, and labels."""
    X, y = load_digits(return_X_y=True)
    return X[:300], y[:300]


@pytest.fixture(scope="module")
def fitted(digits) -> CifarlabClassifier:
    return CifarlabClassifier(DENSE).fit(*digits)


def check_name(check) -> str:
    return check.func.__name__


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_scikit_learns_checks(name: str) -> None:
    epochs = 20 if name == "check_class_weight_classifiers" else 1  # the one that asks for a good fit
    generated = estimator_checks_generator(CifarlabClassifier(DENSE, epochs=epochs))
    checks = [(estimator, check) for estimator, check in generated if check_name(check) == name]
    assert checks
    for estimator, check in checks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(estimator)


def test_pictures_and_rows_give_the_same_network(digits, fitted) -> None:
    X, y = digits
    squares = X.reshape(-1, 8, 8)
    probabilities = fitted.predict_proba(X)
    assert fitted.image_shape_ == (8, 8, 1) and fitted.pixel_range_ == (0.0, 16.0)
    for pictures in (squares, np.repeat(squares[..., None], 3, axis=3)):
        same = CifarlabClassifier(DENSE).fit(pictures, y)
        assert np.array_equal(same.predict_proba(pictures), probabilities)
    assert fitted.score(X, y) > 0.7
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


def test_bytes_are_taken_as_they_are(digits) -> None:
    X, y = digits
    pictures = np.round(X.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    bytes_, floats = CifarlabClassifier(DENSE).fit(pictures, y), CifarlabClassifier(DENSE).fit(X, y)
    assert bytes_.pixel_range_ is None
    assert np.array_equal(bytes_.predict_proba(pictures), floats.predict_proba(X))


def test_labels_may_be_names_and_are_given_back(digits) -> None:
    X, y = digits
    names = np.array(["nought", "one", "two"])
    few = y < 3
    named = CifarlabClassifier(DENSE).fit(X[few], names[y[few]])
    assert named.classes_.tolist() == ["nought", "one", "two"]
    assert set(named.predict(X[few])) <= set(names)
    assert np.array_equal(named.predict(X[few]), names[named.predict_proba(X[few]).argmax(axis=1)])


def test_the_same_seed_gives_the_same_network(digits, fitted) -> None:
    X, y = digits
    again = clone(fitted).fit(X, y)
    other = CifarlabClassifier(DENSE, random_state=1).fit(X, y)
    assert np.array_equal(again.predict_proba(X), fitted.predict_proba(X))
    assert not np.array_equal(other.predict_proba(X), fitted.predict_proba(X))
    CifarlabClassifier(DENSE, epochs=1, random_state=np.random.RandomState(0)).fit(X, y)


def test_it_goes_through_a_grid_and_a_pipeline(digits) -> None:
    X, y = digits
    pipeline = make_pipeline(MinMaxScaler(), CifarlabClassifier(DENSE, epochs=1))
    grid = {
        "cifarlabclassifier__learning_rate": [1e-6, 0.02],
        "cifarlabclassifier__overrides": [{"model.widths": [16]}],
    }
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    assert search.best_params_["cifarlabclassifier__learning_rate"] == 0.02
    assert search.best_estimator_[-1].network_ is not None and search.score(X, y) > 0.4


def test_it_is_pickled_and_unpickled(digits, fitted) -> None:
    X, _ = digits
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), fitted.predict_proba(X))


def test_a_convolutional_recipe_with_a_run_that_is_kept(digits, tmp_path: Path) -> None:
    X, y = digits
    pictures = np.kron(X.reshape(-1, 8, 8), np.ones((2, 2)))
    kept = CifarlabClassifier(CONVOLUTIONS, out=tmp_path / "run", class_weight="balanced", epochs=1)
    kept.fit(pictures, y)
    assert kept.run_.recipe.loss.class_weights == "balanced" and kept.run_.recipe.data.validation == "none"
    started = CifarlabClassifier(CONVOLUTIONS, init_from=kept.run_.path, epochs=1).fit(pictures, y)
    assert started.score(pictures, y) >= kept.score(pictures, y) - 0.05


def test_a_recipe_may_ask_for_another_size(digits) -> None:
    X, y = digits
    overrides = {"input.size": 32, "input.fit": "letterbox"}
    sized = CifarlabClassifier(CONVOLUTIONS, overrides=overrides, epochs=1).fit(X.reshape(-1, 8, 8), y)
    assert sized.preparation_.height == 32
    assert np.allclose(sized.predict_proba(X.reshape(-1, 8, 8)[:3]).sum(axis=1), 1)


def test_mistakes_are_told_in_one_line(digits, fitted) -> None:
    X, y = digits
    with pytest.raises(NotFittedError):
        CifarlabClassifier().predict(X)
    with pytest.raises(UserError, match="unknown recipe 'vgg33'; did you mean 'vgg3'"):
        CifarlabClassifier("vgg33").fit(X, y)
    with pytest.raises(UserError, match="unknown field 'epoch'; did you mean 'epochs'"):
        CifarlabClassifier(DENSE, overrides={"epoch": 1}).fit(X, y)
    with pytest.raises(ValueError, match="fit needs two classes or more, one class is given"):
        CifarlabClassifier(DENSE).fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match=r"image_shape \(4, 4\) has 16 values, X has 64"):
        CifarlabClassifier(DENSE, image_shape=(4, 4)).fit(X, y)
    with pytest.raises(ValueError, match=r"X should be pictures"):
        CifarlabClassifier(DENSE).fit(X.reshape(-1, 8, 4, 2), y)
    with pytest.raises(ValueError, match=r"X has pictures of \(4, 16\), and fit had \(8, 8, 1\)"):
        fitted.predict(X.reshape(-1, 4, 16))

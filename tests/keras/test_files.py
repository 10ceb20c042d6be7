"""Weights exchanged with Keras through its own files, both ways, for every published network: the same outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch

keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'cifarlab[keras]'")

from networks import HIDDEN, network, numbers

from cifarlab.keras_io import load_keras, save_keras
from cifarlab.models import build_model
from cifarlab.recipes import RECIPES

TOLERANCE = 1e-5
DISTINCT = sorted(set(HIDDEN) - {"vgg3-aug", "vgg3-dropout-aug", "cnn-small-aug"})  # the same layers again
PICTURES = np.random.default_rng(0).random((6, 32, 32, 3), np.float32)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")


def keras_outputs(model) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(PICTURES, training=False))


def our_outputs(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(PICTURES).permute(0, 3, 1, 2)).softmax(1).numpy()


def ours(name: str) -> torch.nn.Module:
    return build_model(RECIPES[name].model, 10)


def save(model, path: Path) -> Path:
    model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    return path


def test_every_published_network_is_here():
    """All but those with a pretrained base, and what was not written in Keras."""
    of_keras = {"vgg", "mlp", "alexnet"}
    published = {name for name, each in RECIPES.items() if each.published and each.model.name in of_keras}
    assert set(HIDDEN) == published


@pytest.mark.parametrize("name", DISTINCT)
def test_outputs_are_equal_after_either_way(name, tmp_path):
    theirs, mine = network(name), ours(name)
    trainable = sum(numbers(weight).size for weight in theirs.trainable_weights)
    assert (theirs.count_params(), trainable) == (
        RECIPES[name].parameters,
        RECIPES[name].trainable_parameters,
    )
    expected = keras_outputs(theirs)
    assert expected.std() > 1e-3  # not all the same, which any network would give

    mine.load_state_dict(load_keras(save(theirs, tmp_path / "theirs.keras"), mine).tensors)
    np.testing.assert_allclose(our_outputs(mine), expected, rtol=0, atol=TOLERANCE)

    other = network(name)
    for weight in other.weights:
        weight.assign(0.5 * numbers(weight))
    save_keras(tmp_path / "ours.weights.h5", mine, input_shape=(3, 32, 32))
    other.load_weights(tmp_path / "ours.weights.h5")
    np.testing.assert_allclose(keras_outputs(other), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5", "model.h5"])
@pytest.mark.parametrize("name", ["cnn4-bn", "elu6-bn"])
def test_every_format_both_ways(name, file, tmp_path):
    theirs, mine = network(name), ours(name)
    read = load_keras(save(theirs, tmp_path / file), mine)
    assert read.format == {"model.h5": "legacy .h5"}.get(file, file.removeprefix("model"))
    mine.load_state_dict(read.tensors)
    np.testing.assert_allclose(our_outputs(mine), keras_outputs(theirs), rtol=0, atol=TOLERANCE)

    written = tmp_path / f"ours-{file}"
    save_keras(written, mine, input_shape=(3, 32, 32), name=name)
    other = network(name)
    for weight in other.weights:
        weight.assign(0.5 * numbers(weight))
    other.load_weights(written)
    np.testing.assert_allclose(keras_outputs(other), keras_outputs(theirs), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("file", ["ours.keras", "ours.h5"])
@pytest.mark.parametrize("name", ["vgg3-bn", "cnn-small", "cnn4-bn", "elu6-bn", "mlp"])
def test_whole_models_need_nothing_from_here(name, file, tmp_path):
    mine = ours(name)
    save_keras(tmp_path / file, mine, input_shape=(3, 32, 32), name=name)
    loaded = keras.models.load_model(tmp_path / file)
    assert loaded.name == name and loaded.count_params() == RECIPES[name].parameters
    np.testing.assert_allclose(keras_outputs(loaded), our_outputs(mine), rtol=0, atol=TOLERANCE)


def test_a_model_trained_in_keras_with_its_optimizer(tmp_path):
    """Adam's averages lie in the same file and are left there."""
    theirs, mine = network("cnn4-bn"), ours("cnn4-bn")
    theirs.compile("adam", "sparse_categorical_crossentropy")
    theirs.train_on_batch(PICTURES, np.arange(6))
    for file in ("whole.keras", "whole.h5"):
        mine.load_state_dict(load_keras(save(theirs, tmp_path / file), mine).tensors)
        np.testing.assert_allclose(our_outputs(mine), keras_outputs(theirs), rtol=0, atol=TOLERANCE)


def test_a_model_within_a_model(tmp_path):
    """As where a pretrained base is a layer of the network."""
    flat = network("cnn4-bn", dropout=False)
    base = keras.Sequential([keras.Input((32, 32, 3)), *flat.layers[:7]], name="base")
    nested = keras.Sequential([keras.Input((32, 32, 3)), base, *flat.layers[7:]])
    mine = ours("cnn4-bn")
    for file in ("nested.keras", "nested.h5"):
        save(nested, tmp_path / file)
        if (
            file == "nested.keras"
        ):  # two rows of groups, each with batch norms: their order is not in the file
            with pytest.raises(Exception, match="does not say in which order"):
                load_keras(tmp_path / file, mine)
        else:
            mine.load_state_dict(load_keras(tmp_path / file, mine).tensors)
            np.testing.assert_allclose(our_outputs(mine), keras_outputs(flat), rtol=0, atol=TOLERANCE)

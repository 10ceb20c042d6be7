"""Training here and training in Keras are the same arithmetic: gradients, and 50 steps of every optimiser, in float64.

The steps are those of `cifarlab.training.train_step`, on the same batches, without dropout and augmentation. Where
Keras 2 and 3 differ, our recipes follow Keras 2 and these tests ask for 3's rule: `optimizer.epsilon_place` and
`model.batch_norm_variance`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'cifarlab[keras]'")

from networks import HIDDEN, network, numbers

from cifarlab.data import open_source
from cifarlab.job import Job, new_optimizer, prepare
from cifarlab.keras_io import load_keras, weighted_layers
from cifarlab.models.layers import Dropout
from cifarlab.recipe import override
from cifarlab.recipes import RECIPES
from cifarlab.training import learning_rate_at, train_step

TOLERANCE = 1e-6  # norm of the difference over the norm
STEPS = 50
DECAY = {"schedule.name": "inverse-time", "schedule.decay_per_step": 0.02}

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras"),
]


def our_job(name: str, keras_model, folder: Path, settings: dict | None = None) -> Job:
    """The recipe's own job, in float64, without dropout, by Keras 3's rules, with the weights of `keras_model`."""
    here = {"device.name": "cpu", "device.threads": 1, "data.validation": "none"}
    recipe = override(RECIPES[name], here | (settings or {}))
    changes = {}
    if hasattr(recipe.model, "batch_norm_variance"):
        changes["model.batch_norm_variance"] = "biased"
    if recipe.optimizer.name == "rmsprop":
        changes["optimizer.epsilon_place"] = "inside-root"
    job = prepare(override(recipe, changes), "demo")
    model = job.model.double()
    for layer in model.modules():
        if isinstance(layer, Dropout):
            layer.rate = 0.0
    keras_model.save_weights(folder / "first.weights.h5")
    model.load_state_dict(load_keras(folder / "first.weights.h5", model).tensors)
    return replace(job, optimizer=new_optimizer(job.recipe, model, job.device))


def batches(count: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures float64 (B, 32, 32, 3) in 0..1 and labels int64 (B,): the first of the demo set."""
    train = open_source("demo").load("train")
    starts = range(0, count * size, size)
    return [
        (train.images[start : start + size] / 255.0, train.labels[start : start + size]) for start in starts
    ]


def our_step(job: Job, batch: tuple[np.ndarray, np.ndarray], step: int) -> float:
    images = torch.from_numpy(batch[0]).permute(0, 3, 1, 2)
    rate = learning_rate_at(job, [], step)
    return train_step(job, images, torch.from_numpy(batch[1]), step, rate)[0].item()


def in_keras_s_layout(value: torch.Tensor) -> np.ndarray:
    if value.ndim == 4:
        return np.transpose(value.detach().numpy(), (2, 3, 1, 0))
    return value.detach().numpy().T


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Norm of the difference over the norm of Keras's."""
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))


def our_weights(model: nn.Module) -> list[torch.Tensor]:
    """In the order of Keras's `weights`: layer by layer, the moving statistics after gamma and beta."""
    statistics = ("running_mean", "running_var")
    return [
        getattr(layer, name)
        for _, layer in weighted_layers(model)
        for name in ("weight", "bias", *statistics)
        if hasattr(layer, name)
    ]


# The same networks again, once dropout and augmentation are off
REPEATED = {
    "vgg3-aug",
    "vgg3-dropout",
    "vgg3-dropout-aug",
    "vgg3-dropout-rising",
    "cnn-small-aug",
    "cnn4-dropout",
}


@pytest.mark.parametrize("name", sorted(set(HIDDEN) - REPEATED))
def test_gradient_of_every_weight(name, tmp_path):
    theirs = network(name, last=None, dropout=False)
    job = our_job(name, theirs, tmp_path)
    ((images, labels),) = batches(1, size=4)

    outputs = theirs(images, training=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, outputs) + sum(theirs.losses)
    loss.backward()
    assert our_step(job, (images, labels), step=0) == pytest.approx(loss.item(), rel=1e-12)

    ours = list(job.model.parameters())
    assert len(ours) == len(theirs.trainable_weights)
    for parameter, weight in zip(ours, theirs.trainable_weights, strict=True):
        assert parameter.grad is not None and weight.value.grad.norm() > 0
        far = difference(in_keras_s_layout(parameter.grad), weight.value.grad.numpy())
        assert far < TOLERANCE, weight.path


def keras_rate(recipe) -> object:
    rate, schedule = recipe.optimizer.learning_rate, recipe.schedule
    decay = getattr(schedule, "decay_per_step", 0.0)  # the steps in hand are all of the first epoch
    return keras.optimizers.schedules.InverseTimeDecay(rate, 1, decay) if decay else rate


def keras_optimizer(recipe) -> object:
    settings, rate = recipe.optimizer, keras_rate(recipe)
    if settings.name == "sgd":
        return keras.optimizers.SGD(rate, momentum=settings.momentum)
    if settings.name == "rmsprop":
        return keras.optimizers.RMSprop(rate, rho=settings.rho, epsilon=settings.epsilon)
    return keras.optimizers.Adam(rate, settings.beta_1, settings.beta_2, settings.epsilon)


def compare_trainings(
    name: str, folder: Path, batch_size: int, settings: dict | None = None, keras_settings: dict | None = None
) -> None:
    theirs = network(name, last=None, dropout=False, **(keras_settings or {}))
    job = our_job(name, theirs, folder, settings)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile(keras_optimizer(job.recipe), loss, jit_compile=False)
    before = [numbers(weight).copy() for weight in theirs.weights]
    for step, (images, labels) in enumerate(batches(STEPS, batch_size)):
        expected = theirs.train_on_batch(images, labels)
        theirs.reset_metrics()
        assert our_step(job, (images, labels), step) == pytest.approx(float(expected), rel=TOLERANCE), step
    for ours, weight, first in zip(our_weights(job.model), theirs.weights, before, strict=True):
        trained = difference(first, numbers(weight))
        far = difference(in_keras_s_layout(ours), numbers(weight))
        assert far < min(TOLERANCE, 0.01 * trained), weight.path


OPTIMIZERS = {
    "sgd": {"optimizer.name": "sgd", "optimizer.learning_rate": 0.01},
    "momentum": {"optimizer.name": "sgd", "optimizer.learning_rate": 0.01, "optimizer.momentum": 0.9},
    "momentum-decay": {"optimizer.name": "sgd", "optimizer.momentum": 0.9, **DECAY},
    "rmsprop-decay": {"optimizer.name": "rmsprop", "optimizer.learning_rate": 0.001, **DECAY},
    "adam": {"optimizer.name": "adam"},
}


NARROW = (8, 8, 16)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fifty_steps_of_every_optimizer(optimizer, tmp_path):
    compare_trainings("cnn-small", tmp_path, 4, OPTIMIZERS[optimizer])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fifty_steps_of_every_optimizer_with_l2_and_batch_norm(optimizer, tmp_path):
    settings = {"model.widths": NARROW, **OPTIMIZERS[optimizer]}
    compare_trainings("elu6-bn", tmp_path, 4, settings, {"widths": NARROW})


@pytest.mark.parametrize(
    "name",  # each network once: vgg3's is that of vgg3-l2
    ["vgg1", "vgg2", "vgg3-l2", "elu6-bn", "conv3-sgd", "mlp", "cnn-small", "dense4", "cnn4"],
)
def test_fifty_steps_of_every_recipe(name, tmp_path):
    compare_trainings(name, tmp_path, 2)


@pytest.mark.parametrize(
    ("name", "rate", "settings", "keras_settings"),
    [
        ("vgg3-bn", 5e-6, {}, {}),
        ("cnn4-bn", 1e-5, {}, {}),
        # Small dense layers: Adam on 21 million weights would take a minute.
        ("alexnet-small", 1e-5, {"model.dense": 64}, {"units": 64}),
    ],
    ids=["vgg3-bn", "cnn4-bn", "alexnet-small"],
)
def test_fifty_steps_with_batch_norm_over_few_values(name, rate, settings, keras_settings, tmp_path):
    """A norm over the four values of a unit of a dense layer. At the recipe's own rate so small a batch makes the
    training chaotic: a rounding error of 1e-15 grows tenfold a step. Hence a lower rate."""
    compare_trainings(name, tmp_path, 4, {"optimizer.learning_rate": rate, **settings}, keras_settings)

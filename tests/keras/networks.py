"""Every published network in plain Keras layers, written from the write-ups' tables and not from our recipes.

In the tables' shorthand: C32 is a 3x3 convolution with 32 filters, ReLU and `same` padding, P a 2x2 max-pool,
F flatten, D128 a dense layer with ReLU.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

import keras
import numpy as np
from keras import regularizers
from keras.layers import Activation, BatchNormalization, Conv2D, Dense, Dropout, Flatten, Layer, MaxPooling2D

BN = BatchNormalization


def numbers(weight: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight)


def conv(filters: int, size: int = 3, **settings) -> Conv2D:
    return Conv2D(filters, size, **{"padding": "same", "activation": "relu", **settings})


def dense(units: int, **settings) -> Dense:
    return Dense(units, activation="relu", **settings)


def vgg(
    blocks: int,
    rates: Iterable[float] = (),
    dense_rate: float = 0.0,
    norm: bool = False,
    l2: float | None = None,
) -> Iterator[Layer]:
    """T1: C C P a block, with 32, 64 and 128 filters; F D128."""
    settings = {"kernel_regularizer": None if l2 is None else regularizers.L2(l2)}
    for filters, rate in zip_longest((32, 64, 128)[:blocks], rates):
        for _ in range(2):
            yield conv(filters, **settings)
            if norm:
                yield BN()
        yield MaxPooling2D()
        if rate:
            yield Dropout(rate)
    yield Flatten()
    yield dense(128, **settings)
    if norm:
        yield BN()
    if dense_rate:
        yield Dropout(dense_rate)


def elu6_bn(widths: Iterable[int] = (32, 64, 128)) -> Iterator[Layer]:
    for filters, rate in zip(widths, (0.2, 0.3, 0.4), strict=True):
        for _ in range(2):
            yield Conv2D(filters, 3, padding="same", kernel_regularizer=regularizers.L2(1e-4))
            yield Activation("elu")
            yield BN()
        yield MaxPooling2D()
        yield Dropout(rate)
    yield Flatten()


def conv3_sgd() -> Iterator[Layer]:
    for filters in (32, 64, 128):
        yield from (conv(filters), MaxPooling2D(), Dropout(0.25))
    yield from (Flatten(), dense(512), Dropout(0.5))


def mlp() -> Iterator[Layer]:
    yield from (Flatten(), dense(1000), Dropout(0.2), dense(512), Dropout(0.2))


def cnn_small() -> Iterator[Layer]:
    for filters in (16, 32, 64):
        yield from (conv(filters, 2), MaxPooling2D())
    yield from (Dropout(0.3), Flatten(), dense(500), Dropout(0.4))


def alexnet_small(units: int = 4096) -> Iterator[Layer]:
    yield from (conv(96, 3, strides=2), MaxPooling2D(), BN())
    yield from (conv(256, 5), MaxPooling2D(3, strides=2), BN())
    yield from (conv(384), conv(384), conv(256), MaxPooling2D(3, strides=2), BN())
    yield from (Flatten(), dense(units), Dropout(0.4), dense(units), Dropout(0.4))


def dense4() -> Iterator[Layer]:
    yield from (Flatten(), dense(2048), dense(1024), dense(512), dense(256))


def cnn4(dropout: bool = False, norm: bool = False) -> Iterator[Layer]:
    """T5: `valid` padding; BN, then dropout, before each P and before the output."""
    between = [BN] * norm + [lambda: Dropout(0.25)] * dropout
    for filters in (32, 64):
        yield from (conv(filters, padding="valid"), conv(filters, padding="valid"))
        yield from (layer() for layer in between)
        yield MaxPooling2D()
    yield from (Flatten(), dense(512))
    yield from (layer() for layer in between)


HIDDEN: dict[str, Callable[..., Iterator[Layer]]] = {
    "vgg1": lambda: vgg(1),
    "vgg2": lambda: vgg(2),
    "vgg3": lambda: vgg(3),
    "vgg3-dropout": lambda: vgg(3, (0.2, 0.2, 0.2), 0.2),
    "vgg3-l2": lambda: vgg(3, l2=0.001),
    "vgg3-aug": lambda: vgg(3),
    "vgg3-dropout-rising": lambda: vgg(3, (0.2, 0.3, 0.4), 0.5),
    "vgg3-dropout-aug": lambda: vgg(3, (0.2, 0.2, 0.2), 0.2),
    "vgg3-bn": lambda: vgg(3, (0.2, 0.3, 0.4), 0.5, norm=True),
    "elu6-bn": elu6_bn,
    "conv3-sgd": conv3_sgd,
    "mlp": mlp,
    "cnn-small": cnn_small,
    "cnn-small-aug": cnn_small,
    "alexnet-small": alexnet_small,
    "dense4": dense4,
    "cnn4": cnn4,
    "cnn4-dropout": lambda: cnn4(dropout=True),
    "cnn4-bn": lambda: cnn4(dropout=True, norm=True),
}


def network(name: str, *, last: str | None = "softmax", dropout: bool = True, **settings) -> keras.Sequential:
    """The network of a recipe on 32x32 pictures, with weights far from their first values: biases and all."""
    hidden = [layer for layer in HIDDEN[name](**settings) if dropout or not isinstance(layer, Dropout)]
    model = keras.Sequential([keras.Input((32, 32, 3)), *hidden, Dense(10, activation=last)])
    generator = np.random.default_rng(len(name))
    for weight in model.weights:
        lowest = 0.0 if "variance" in weight.path else -0.05
        weight.assign(numbers(weight) + generator.uniform(lowest, 0.05, weight.shape))
    return model

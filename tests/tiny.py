"""A tiny training that touches every part of the state: momentum, batch norm, dropout, augmentation, averaging."""

import dataclasses
from collections.abc import Callable

import pytest

from cifarlab.data import Source, Split, open_source
from cifarlab.data.sources import StoredSplit
from cifarlab.models.specs import VGG
from cifarlab.recipe import EMA, SGD, Augment, Data, Device, Recipe

RECIPE = Recipe(
    name="tiny",
    source="a test",
    network="C8 C8 P C8 C8 P F D16 out",
    model=VGG(widths=(8, 8), dense=16, pool_dropout=(0.1, 0.1), dense_dropout=0.1, batch_norm=True),
    data=Data(validation_fraction=0.2, steps_per_epoch="floor"),
    augment=Augment(shift=0.1, rotation=10, flip=0.5),
    optimizer=SGD(learning_rate=0.02, momentum=0.9, nesterov=True),
    ema=EMA(decay=0.9),
    device=Device(threads=1),  # two threads wait for each other where tests share the cores
    batch_size=32,
    epochs=3,
)

SMALL_OPTIONS = [  # of a training on the command line, whatever the recipe
    part
    for setting in (
        "model.widths=[4, 8]",
        "model.dense=8",
        "epochs=1",
        "schedule.name=constant",
        "device.threads=1",
    )
    for part in ("--set", setting)
]


def tiny_source(*_asked: object, images: int = 300, **_options: object) -> Source:
    """The demo set's first pictures: 300 to train on (240 after the validation cut), 300 to test on."""
    whole = open_source("demo")

    def read(split: StoredSplit) -> Split:
        content = whole.load(split)
        return Split(content.images[:images], content.labels[:images])

    return dataclasses.replace(whole, checksum=f"sha256:{images:064x}", read=read)


def use_source(patch: pytest.MonkeyPatch, opened: Callable[..., Source]) -> None:
    """What trainings, resumed ones and evaluations get, whatever data they ask for."""
    for module in ("job.open", "group_training.open", "training.reopen", "evaluation.reopen"):
        patch.setattr(f"cifarlab.{module}_source", opened)

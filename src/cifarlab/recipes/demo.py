"""The recipe that shows the whole way through on the embedded `demo` pictures in under a minute."""

from cifarlab.models.specs import VGG
from cifarlab.recipe import Adam, Augment, Data, OneCycle, Recipe

RECIPES = (
    Recipe(
        name="demo",
        source="cifarlab: a short training on the embedded demo pictures",
        network="C16 C16 P C32 C32 P C64 C64 P C64 C64 P F D64 out, batch norm after each ReLU",
        parameters=164_698,
        trainable_parameters=163_866,
        model=VGG(widths=(16, 32, 64, 64), dense=64, batch_norm=True),
        data=Data(preparation="standardize-channels"),
        augment=Augment(shift=0.1, flip=0.5),
        optimizer=Adam(learning_rate=0.02),
        schedule=OneCycle(warmup_fraction=0.25),
        batch_size=64,
        epochs=16,
    ),
)

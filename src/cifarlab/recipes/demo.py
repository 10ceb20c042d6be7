"""The recipe that shows the whole way through on the embedded `demo` pictures in under a minute."""

from cifarlab.models.specs import VGG
from cifarlab.recipe import SGD, Augment, Cosine, Data, Recipe

RECIPES = (
    Recipe(
        name="demo",
        source="cifarlab: a short training on the embedded demo pictures",
        network="C16 C16 P C32 C32 P C64 C64 P F D64 out",
        model=VGG(widths=(16, 32, 64), dense=64),
        data=Data(preparation="standardize-channels"),
        augment=Augment(shift=0.1, flip=0.5),
        optimizer=SGD(learning_rate=0.05, momentum=0.9, nesterov=True),
        schedule=Cosine(),
        batch_size=64,
        epochs=10,
    ),
)

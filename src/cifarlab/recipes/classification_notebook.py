"""T5: the notebook "Classification of the CIFAR-10 dataset".

Pixels / 255, plain SGD at 0.01, batches of 32, 10 epochs; the last quarter of the training images for validation,
except dense4. The figures are those of the last epoch.
"""

from cifarlab.models.specs import MLP, VGG, ModelSpec
from cifarlab.recipe import SGD, Data, Published, Recipe

SOURCE = '"Classification of the CIFAR-10 dataset" (notebook)'
CNN4 = VGG(widths=(32, 64), padding="valid", initializer="glorot_uniform", dense=512)
DROPOUT = CNN4.model_copy(
    update={"pool_dropout": (0.25, 0.25), "dropout_place": "before-pool", "dense_dropout": 0.25}
)
BATCH_NORM = DROPOUT.model_copy(update={"batch_norm": True, "batch_norm_place": "dropouts"})
QUARTER = Data(validation="last", validation_fraction=0.25)


def _recipe(
    name: str,
    network: str,
    model: ModelSpec,
    published: Published,
    *,
    parameters: int,
    trainable_parameters: int | None = None,
    data: Data = QUARTER,
) -> Recipe:
    return Recipe(
        name=name,
        source=SOURCE,
        published=published,
        network=network,
        parameters=parameters,
        trainable_parameters=trainable_parameters or parameters,
        model=model,
        data=data,
        optimizer=SGD(learning_rate=0.01),
        weights="last",
        batch_size=32,
        epochs=10,
    )


def _validation(accuracy: float) -> Published:
    return Published(accuracy=accuracy, split="validation", epochs=10)


RECIPES = (
    _recipe(
        "dense4",
        "F D2048 D1024 D512 D256 out",
        MLP(widths=(2048, 1024, 512, 256)),
        Published(accuracy=0.4976, loss=1.4222, epochs=10),
        parameters=9_050_378,
        data=Data(validation="none"),
    ),
    _recipe(
        "cnn4", "valid padding: C32 C32 P C64 C64 P F D512 out", CNN4, _validation(0.6361), parameters=890_410
    ),
    _recipe(
        "cnn4-dropout",
        "cnn4, dropout 0.25 before each P and before out",
        DROPOUT,
        _validation(0.6207),
        parameters=890_410,
    ),
    _recipe(
        "cnn4-bn",
        "cnn4-dropout, batch norm before each dropout",
        BATCH_NORM,
        _validation(0.6347),
        parameters=892_842,
        trainable_parameters=891_626,
    ),
)

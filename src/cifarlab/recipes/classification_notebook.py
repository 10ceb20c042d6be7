"""T5: the notebook "Classification of the CIFAR-10 dataset".

Pixels / 255, plain SGD at 0.01, batches of 32, 10 epochs; the last quarter of the training images for validation,
except dense4. The figures are those of the last epoch.
"""

from cifarlab.models.specs import MLP, VGG, VGG16, ModelSpec
from cifarlab.recipe import SGD, Data, Finetune, Published, Recipe

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
    published: Published | None,
    *,
    parameters: int,
    trainable_parameters: int | None = None,
    data: Data = QUARTER,
    finetune: Finetune = Finetune(),
    notes: str = "",
) -> Recipe:
    return Recipe(
        name=name,
        source=SOURCE,
        notes=notes,
        published=published,
        network=network,
        parameters=parameters,
        trainable_parameters=trainable_parameters or parameters,
        model=model,
        data=data,
        optimizer=SGD(learning_rate=0.01),
        finetune=finetune,
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
    _recipe(
        "vgg16-frozen",
        "ImageNet's VGG16 without top, frozen, F D512 out",
        VGG16(),
        _validation(0.5533),
        parameters=14_982_474,
        trainable_parameters=267_786,
        finetune=Finetune(freeze=("block*",)),
        notes=(
            "The weights of the base are Keras's file, fetched or given with model.weights. As in the notebook, the"
            " base sees RGB / 255, though it was trained on blue, green, red minus ImageNet's means: that is"
            " data.preparation=imagenet-bgr. Pictures of 32 pixels leave one pixel after five pools:"
            " model.upsample=64 leaves four."
        ),
    ),
    _recipe(
        "vgg16-finetune",
        "vgg16-frozen with block 5 unfrozen",
        VGG16(),
        None,
        parameters=14_982_474,
        trainable_parameters=7_347_210,
        finetune=Finetune(freeze=("block*",), unfreeze="block5", block_factor=0.01),
        notes=(
            "The notebook describes it, never runs it, and gives no number: unfreeze the top 2 or 3 layers of the base"
            " and train them at a very low rate. Ours: the three convolutions of block 5 at 0.0001, a hundredth of the"
            " head's rate. All else, the weights and the inputs too, as in vgg16-frozen."
        ),
    ),
)

"""T1: J. Brownlee, "How to Develop a CNN From Scratch for CIFAR-10 Photo Classification" (2019).

Pixels / 255, batches of 64, SGD at 0.001 with momentum 0.9. Trained on all 50,000 images; the write-up passed the test
set as validation data and reports the last epoch's figure, so these recipes do too, and every output says it.
Shorthand: C32 = 3x3 convolution, 32 filters, ReLU; P = 2x2 max-pool; F = flatten; D128 = dense, ReLU.
"""

from cifarlab.models.specs import VGG
from cifarlab.recipe import SGD, Augment, Data, Published, Recipe, Regularization

SOURCE = 'J. Brownlee, "How to Develop a CNN From Scratch for CIFAR-10 Photo Classification" (2019)'
NOTES = "As in the write-up, validation is the test set: the figure after every epoch is a test figure."
VGG1 = "C32 C32 P F D128 out"
VGG2 = "C32 C32 P C64 C64 P F D128 out"
VGG3 = "C32 C32 P C64 C64 P C128 C128 P F D128 out"
A1 = Augment(shift=0.1, flip=0.5)
FIXED_DROPOUT = VGG(widths=(32, 64, 128), pool_dropout=(0.2, 0.2, 0.2), dense_dropout=0.2)
RISING_DROPOUT = VGG(widths=(32, 64, 128), pool_dropout=(0.2, 0.3, 0.4), dense_dropout=0.5)


def _recipe(
    name: str,
    network: str,
    model: VGG,
    *,
    epochs: int,
    accuracy: float,
    parameters: int,
    trainable_parameters: int | None = None,
    augment: Augment = Augment(),
    regularization: Regularization = Regularization(),
) -> Recipe:
    # Without augmentation the write-up calls fit on arrays (782 steps an epoch); with it, fit_generator with
    # steps_per_epoch = 50,000 // 64 = 781 over an endless stream.
    return Recipe(
        name=name,
        source=SOURCE,
        notes=NOTES,
        published=Published(accuracy=accuracy, epochs=epochs),
        network=network,
        parameters=parameters,
        trainable_parameters=trainable_parameters or parameters,
        model=model,
        data=Data(
            preparation="scale",
            validation="test",
            steps_per_epoch="floor" if not augment.changes_nothing else "ceil",
        ),
        augment=augment,
        optimizer=SGD(learning_rate=0.001, momentum=0.9),
        regularization=regularization,
        batch_size=64,
        epochs=epochs,
    )


RECIPES = (
    _recipe("vgg1", VGG1, VGG(widths=(32,)), epochs=100, accuracy=0.67070, parameters=1_060_138),
    _recipe("vgg2", VGG2, VGG(widths=(32, 64)), epochs=100, accuracy=0.71080, parameters=591_274),
    _recipe("vgg3", VGG3, VGG(widths=(32, 64, 128)), epochs=100, accuracy=0.73500, parameters=550_570),
    _recipe(
        "vgg3-dropout",
        f"{VGG3}, dropout 0.2 after each P and D128",
        FIXED_DROPOUT,
        epochs=100,
        accuracy=0.83450,
        parameters=550_570,
    ),
    _recipe(
        "vgg3-l2",
        f"{VGG3}, L2 0.001",
        VGG(widths=(32, 64, 128)),
        epochs=100,
        accuracy=0.72550,
        parameters=550_570,
        regularization=Regularization(l2=0.001, l2_layers="hidden"),
    ),
    _recipe(
        "vgg3-aug",
        f"{VGG3}, shift and flip",
        VGG(widths=(32, 64, 128)),
        epochs=100,
        accuracy=0.84470,
        parameters=550_570,
        augment=A1,
    ),
    _recipe(
        "vgg3-dropout-rising",
        f"{VGG3}, dropout 0.2 0.3 0.4, 0.5 after D128",
        RISING_DROPOUT,
        epochs=200,
        accuracy=0.84690,
        parameters=550_570,
    ),
    _recipe(
        "vgg3-dropout-aug",
        f"{VGG3}, dropout 0.2, shift and flip",
        FIXED_DROPOUT,
        epochs=200,
        accuracy=0.85880,
        parameters=550_570,
        augment=A1,
    ),
    _recipe(
        "vgg3-bn",
        f"{VGG3}, batch norm, rising dropout, shift and flip",
        RISING_DROPOUT.model_copy(update={"batch_norm": True}),
        epochs=400,
        accuracy=0.88620,
        parameters=552_874,
        trainable_parameters=551_722,
        augment=A1,
    ),
)

"""T4: the notebook `03_cifar10_image_classification` of S. Jansen, "Machine Learning for Trading" (2021).

Pixels / 255, the first 5,000 training images for validation, batches of 32, 20 epochs of Adam; the weights of the
lowest validation loss are tested. With augmentation an epoch is 1,406 batches over an endless stream.
"""

from cifarlab.models.specs import MLP, VGG, AlexNet, ModelSpec
from cifarlab.recipe import Adam, Augment, Data, Published, Recipe

SOURCE = 'S. Jansen, "Machine Learning for Trading", notebook 03_cifar10_image_classification (2021)'
A1 = Augment(shift=0.1, flip=0.5)
SMALL = VGG(
    widths=(16, 32, 64),
    convolutions=1,
    kernel_size=2,
    initializer="glorot_uniform",
    dense=500,
    pool_dropout=(0.0, 0.0, 0.3),
    dense_dropout=0.4,
)


def _recipe(
    name: str,
    network: str,
    model: ModelSpec,
    *,
    accuracy: float,
    parameters: int,
    trainable_parameters: int | None = None,
    augment: Augment = Augment(),
) -> Recipe:
    return Recipe(
        name=name,
        source=SOURCE,
        published=Published(accuracy=accuracy, epochs=20),
        network=network,
        parameters=parameters,
        trainable_parameters=trainable_parameters or parameters,
        model=model,
        data=Data(
            validation="first",
            validation_images=5_000,
            steps_per_epoch="floor" if not augment.changes_nothing else "ceil",
        ),
        augment=augment,
        optimizer=Adam(),
        batch_size=32,
        epochs=20,
    )


RECIPES = (
    _recipe(
        "mlp",
        "F D1000 D512 out, dropout 0.2 after each D",
        MLP(widths=(1000, 512), dropout=0.2),
        accuracy=0.4422,
        parameters=3_590_642,
    ),
    _recipe(
        "cnn-small",
        "2x2 kernels: C16 P C32 P C64 P F D500 out, dropout 0.3 and 0.4",
        SMALL,
        accuracy=0.6707,
        parameters=528_054,
    ),
    _recipe(
        "cnn-small-aug",
        "cnn-small, shift and flip",
        SMALL,
        accuracy=0.7479,
        parameters=528_054,
        augment=A1,
    ),
    _recipe(
        "alexnet-small",
        "AlexNet for small pictures, batch norm, dropout 0.4, shift and flip",
        AlexNet(),
        accuracy=0.7684,
        parameters=21_592_330,
        trainable_parameters=21_591_114,
        augment=A1,
    ),
)

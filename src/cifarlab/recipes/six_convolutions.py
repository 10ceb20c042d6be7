"""T2: a blog post on reaching about 90 % on CIFAR-10 with six convolution layers.

Pixels standardised with one mean and one deviation, L2 on every convolution, convolution -> ELU -> batch norm twice a
block, then pool and dropout. RMSprop at 0.001 in three steps, with Keras's decay on top.
"""

from cifarlab.models.specs import VGG
from cifarlab.recipe import Augment, Data, Published, Recipe, Regularization, RMSprop, Step

RECIPES = (
    Recipe(
        name="elu6-bn",
        source='"Achieving 90 % accuracy in object recognition on CIFAR-10 with Keras" (blog post)',
        notes=(
            "The text has lost lines of its listing. Batch norm, its place and L2 are in the text; ELU, pooling, the"
            " dropout rates, the 15 degrees, the flip and the test set as validation are reconstructed (its"
            " demonstration of augmentation rotates by up to 90 degrees). As there, validation is the test set: the"
            " figure after every epoch is a test figure. The published figure is given as 'about 90 %'."
        ),
        published=Published(accuracy=0.90, epochs=125),
        network="C32 C32 P, C64 C64 P, C128 C128 P F out: ELU, batch norm, rising dropout",
        parameters=309_290,
        trainable_parameters=308_394,
        model=VGG(
            widths=(32, 64, 128),
            activation="elu",
            initializer="glorot_uniform",
            dense=None,
            pool_dropout=(0.2, 0.3, 0.4),
            batch_norm=True,
        ),
        data=Data(preparation="standardize", validation="test", steps_per_epoch="floor"),
        augment=Augment(rotation=15.0, shift=0.1, flip=0.5),
        optimizer=RMSprop(learning_rate=0.001),
        # Epochs counted from 0: above 75 half the rate, above 100 0.0003.
        schedule=Step(epochs=(76, 101), factors=(0.5, 0.3), decay_per_step=1e-6),
        regularization=Regularization(l2=1e-4, l2_layers="convolutions"),
        batch_size=64,
        epochs=125,
    ),
)

"""T3: "Deep Learning Lab, Episode 2: CIFAR-10" (blog post).

Pixels / 255, the last 10,000 training images for validation, batches of 64, SGD at 0.01 with momentum 0.9.
"""

from cifarlab.models.specs import VGG
from cifarlab.recipe import SGD, Data, Published, Recipe

RECIPES = (
    Recipe(
        name="conv3-sgd",
        source='"Deep Learning Lab, Episode 2: CIFAR-10" (blog post)',
        notes=(
            "The listing gives the convolutions and pools alone. Activations, head and dropout are reconstructed: a"
            " test loss that stays at 0.67 from 100 epochs to 200 means dropout throughout, and the plainest head of"
            " its day with the layers it imports is that of Keras's own CIFAR-10 example: dropout 0.25 after the"
            " pools, D512, dropout 0.5. It reports 77.37 % after 100 epochs, 78.22 after 150, 77.77 after 200, which"
            " read like one run continued."
        ),
        published=Published(accuracy=0.7737, loss=0.670, epochs=100),
        network="C32 P C64 P C128 P F D512 out, dropout 0.25 after each P, 0.5 after D512",
        parameters=1_147_466,
        trainable_parameters=1_147_466,
        model=VGG(
            widths=(32, 64, 128),
            convolutions=1,
            initializer="glorot_uniform",
            dense=512,
            pool_dropout=(0.25, 0.25, 0.25),
            dense_dropout=0.5,
        ),
        data=Data(validation="last", validation_images=10_000),
        optimizer=SGD(learning_rate=0.01, momentum=0.9),
        weights="last",
        batch_size=64,
        epochs=100,
    ),
)

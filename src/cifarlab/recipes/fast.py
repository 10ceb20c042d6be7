"""Fast training: cifar10-airbench (K. Jordan, arXiv 2404.00498) as published."""

from cifarlab.models.specs import Airbench
from cifarlab.recipe import Augment, Data, Linear, Loss, Muon, Published, Recipe

RECIPES = (
    Recipe(
        name="airbench94",
        source='K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498), the version with Muon',
        notes="The published mean is of many runs, with six test-time views. It trains on all 50,000 images.",
        published=Published(accuracy=0.9401, epochs=8),
        network="whitening, then three groups of two C with batch norm and GELU, widths 64 256 256",
        parameters=1_973_944,
        trainable_parameters=1_971_352,
        model=Airbench(),
        data=Data(preparation="standardize-channels", validation="none", steps_per_epoch="floor"),
        augment=Augment(crop_padding=2, flip=0.5, flip_rule="alternating"),
        optimizer=Muon(),
        schedule=Linear(),
        loss=Loss(label_smoothing=0.2, reduction="sum"),
        test_time_views="mirror-shift",
        batch_size=2000,
        epochs=8,
    ),
)

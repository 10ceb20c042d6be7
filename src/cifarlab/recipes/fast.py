"""Fast training after cifar10-airbench (K. Jordan, arXiv 2404.00498), and the baseline that researchers expect."""

from cifarlab.models.specs import Airbench, ResNet
from cifarlab.recipe import SGD, Augment, Cosine, Data, Device, Linear, Loss, Muon, Published, Recipe

SOURCE = 'K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498)'

AIRBENCH94 = Recipe(
    name="airbench94",
    source=f"{SOURCE}, the version with Muon",
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
)

# Pixels a side: twice 16, twice 20, once 24, then the middle 26 of 32 eleven times, and all 32 at the end. An epoch of
# 16 has a fifth of the multiplications of one of 32, and one of 26 seven tenths.
SCALES = (*[0.5] * 2, *[0.625] * 2, 0.75, 1.0)
CROPS = (*[1.0] * 5, *[0.8125] * 11, 1.0)


def _fast(name: str, **changes: object) -> Recipe:
    """After airbench94, with what trains faster on a CPU: smaller pictures first, smaller batches, bfloat16."""
    ours = {
        "name": name,
        "source": f"after {SOURCE}",
        "published": None,
        "optimizer": Muon(learning_rate=0.17),  # about 0.24 / sqrt(2), for half the batch
        "device": Device(precision="auto"),
        "batch_size": 1000,
    }
    return AIRBENCH94.model_copy(update=ours | changes)


RECIPES = (
    AIRBENCH94,
    _fast(
        "fast94",
        notes="For a mean of 94 % with six test-time views. It trains on all 50,000 images.",
        data=AIRBENCH94.data.model_copy(update={"training_scales": SCALES, "training_crops": CROPS}),
        augment=Augment(crop_padding=4, flip=0.5, flip_rule="alternating"),
        epochs=17,
    ),
    _fast(
        "fast95",
        notes="For 95 % with six test-time views. Widths and epochs are airbench95's; not measured yet.",
        network="airbench94 with widths 128 384 384",
        parameters=4_608_312,
        trainable_parameters=4_604_440,
        model=Airbench(widths=(128, 384, 384)),
        epochs=15,
    ),
    _fast(
        "fast96",
        notes="For 96 % with six test-time views. Network, crops and cutout are airbench96's, without its proxy that"
        " picks the pictures of each batch; not measured yet.",
        network="airbench94 with three C a group, widths 128 384 512, a residual round the last",
        parameters=9_921_848,
        trainable_parameters=9_915_416,
        model=Airbench(widths=(128, 384, 512), convolutions=3),
        augment=Augment(crop_padding=4, flip=0.5, flip_rule="alternating", cutout=12),
        epochs=45,
    ),
    Recipe(
        name="resnet18",
        source='K. He and others, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), with a 3x3 stem,'
        " as researchers train it on CIFAR-10: SGD, cosine, 200 epochs",
        notes="Weight decay is on kernels only. Not measured yet.",
        network="C64, then four stages of two residual blocks, widths 64 128 256 512, mean, out",
        parameters=11_183_562,
        trainable_parameters=11_173_962,
        model=ResNet(),
        data=Data(preparation="standardize-channels", validation="stratified"),
        augment=Augment(crop_padding=4, flip=0.5),
        optimizer=SGD(learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=Cosine(),
        device=Device(precision="auto"),
        batch_size=128,
        epochs=200,
    ),
)

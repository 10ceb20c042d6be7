"""A job: a recipe with its data on the device and its network built, ready to train."""

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifarlab import pretrained
from cifarlab.data import Source, open_source
from cifarlab.data.difficulty import Difficulty
from cifarlab.data.loader import (
    WEIGHTS,
    WHOLE,
    BatchStream,
    Images,
    Size,
    derived_seed,
    on_device,
    sizes_of_passes,
)
from cifarlab.data.mapped import Pictures, choose
from cifarlab.data.splits import split_validation
from cifarlab.environment import choose_device, choose_precision
from cifarlab.errors import UserError, one_of
from cifarlab.models import build_model, check_parameters
from cifarlab.models.airbench import WHITENED_PICTURES, fit_whitening
from cifarlab.models.layers import Dropout
from cifarlab.optim import build_optimizer
from cifarlab.preparation import Preparation
from cifarlab.process import keep_freed_memory
from cifarlab.recipe import OWN_SIZE, Recipe
from cifarlab.run import Run
from cifarlab.transfer import begin_with, freeze_for_epoch, frozen_layers, open_base, rate_factors


@dataclass(frozen=True, eq=False)
class Job:
    """A recipe with its data on the device and its network built: all that training needs, nothing written yet."""

    recipe: Recipe
    source: Source
    device: torch.device
    stream: BatchStream
    validation: tuple[Images, Tensor] | None  # uint8 (N, H, W, 3) and labels int64 (N,), on the device
    validation_indices: list[int]
    model: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    initial_weights: dict[str, Any] | None = None  # where weights from elsewhere came from, for data.json
    cached_layers: int = (
        0  # of the network's first: `stream` and `validation` hold their outputs, not pictures
    )

    @property
    def n_train(self) -> int:
        return len(self.stream.labels)

    @property
    def n_validation(self) -> int:
        return 0 if self.validation is None else len(self.validation[1])

    @property
    def steps_per_epoch(self) -> int:
        steps = self.recipe.data.steps_per_epoch
        if isinstance(steps, int):
            return steps
        rounded = math.floor if steps == "floor" else math.ceil
        return max(1, rounded(self.n_train / self.recipe.batch_size))

    @property
    def weights(self) -> nn.Module:
        """The network that is validated and saved: the average where the recipe asks for one."""
        return self.model if self.average is None else self.average.module

    @cached_property
    def network(self) -> nn.Module:
        """What computes logits from what `stream` gives: the model, or its layers after the cached ones."""
        return _after(self.model, self.cached_layers)

    @cached_property
    def judged_network(self) -> nn.Module:
        """`network` with the weights that are validated and saved."""
        return _after(self.weights, self.cached_layers)

    @cached_property
    def has_dropout(self) -> bool:
        return any(isinstance(layer, Dropout) for layer in self.network.modules())

    @cached_property
    def class_weights(self) -> Tensor | None:
        """float32 (classes,) by which the loss of a picture of each class counts in training; None: all alike."""
        wanted = self.recipe.loss.class_weights
        if wanted == "none":
            return None
        if wanted == "balanced":
            counts = torch.bincount(self.stream.labels.cpu(), minlength=len(self.source.classes))
            weights = self.n_train / (int((counts > 0).sum()) * counts.clamp(min=1))
        else:
            weights = torch.tensor(wanted)
        return weights.float().to(self.device)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return 3, self.stream.preparation.height, self.stream.preparation.width


def _after(model: nn.Module, layers: int) -> nn.Module:
    return model[layers:] if layers else model  # type: ignore[index]


def autocast(job: Job) -> AbstractContextManager[Any]:
    """Mixed precision, where the recipe asks for it."""
    if choose_precision(job.recipe.device, job.device) == "float32":
        return nullcontext()
    return torch.autocast(job.device.type, dtype=torch.bfloat16)


def prepare(
    recipe: Recipe,
    data: str | Path | Source = "cifar10",
    data_dir: str | Path | None = None,
    resumed: Run | None = None,
    *,
    begin: bool = True,
) -> Job:
    """Open the data, cut validation, put pictures on the device, and build the network with its first weights.

    `data` is a name, looked for in `data_dir`, the path of own pictures, or a source that is open already. The job of a
    run that is `resumed` gets its weights from the run's state: what they began with is not opened again, nor is it
    without `begin`.

    Raises:
        UserError: for data that is missing or damaged, a device that is not there, or a recipe that does not fit.
    """
    device = choose_device(recipe.device)
    begins = begin and resumed is None
    base = open_base(recipe) if begins else None
    if begins and base is None and (weights := pretrained.wanted(recipe.model)):
        pretrained.find(weights)  # their absence is told before anything long
    source = _sized_source(recipe, data, data_dir)
    _check_class_weights(recipe, source.classes)
    cut = _cut(recipe, source)
    preparation = _preparation(recipe, cut.training[0], base, resumed)
    stream = _stream(recipe, *_on_device(cut.training, device), preparation)
    model = _untrained_model(recipe, source, stream, device)
    keep_freed_memory(max(parameter.nbytes for parameter in model.parameters()))
    initial_weights = None
    if base is not None:
        initial_weights = _begin_with(base, recipe, model, source.classes, preparation)
    elif begins:
        initial_weights = pretrained.begin_with(model, recipe.model)
    _check_batches(recipe, len(stream.labels), model)
    _check_sizes(stream.sizes, preparation, model)
    return Job(
        recipe=recipe,
        source=source,
        device=device,
        stream=stream,
        validation=_on_device(cut.validation, device) if len(cut.validation[1]) else None,
        validation_indices=cut.held_out.tolist(),
        model=model,
        average=new_average(recipe, model),
        optimizer=new_optimizer(recipe, model, device),
        initial_weights=initial_weights,
    )


def _sized_source(recipe: Recipe, data: str | Path | Source, data_dir: str | Path | None) -> Source:
    """The data, with pictures of the recipe's size."""
    size = recipe.input
    if not isinstance(data, Source):
        place = None if data_dir is None else Path(data_dir)
        data = open_source(data, place, size_pixels=size.size, fit=size.fit)
    return data.sized(size.size, size.fit)


_Labelled = tuple[Pictures, np.ndarray]  # pictures uint8 (N, H, W, 3), labels int64 (N,)


@dataclass(frozen=True)
class _Cut:
    """What is trained on, what is validated on, and the places of the training pictures that are held out."""

    training: _Labelled
    validation: _Labelled
    held_out: np.ndarray


def _cut(recipe: Recipe, source: Source) -> _Cut:
    train, settings = source.load("train"), recipe.data
    chosen, held_out = split_validation(
        train.labels,
        settings.validation,
        settings.validation_fraction,
        settings.validation_images,
        settings.validation_seed,
        settings.folds,
        settings.fold,
        groups=source.groups,
        given=source.validation,
        classes=source.classes,
    )
    images = train.images if len(held_out) == 0 else choose(train.images, chosen)
    if settings.validation == "test":
        judged = source.load("test")
        validation = judged.images, judged.labels
    else:
        validation = choose(train.images, held_out), train.labels[held_out]
    return _Cut((images, train.labels[chosen]), validation, held_out)


def _on_device(cut: _Labelled, device: torch.device) -> tuple[Images, Tensor]:
    images, labels = cut
    return on_device(images, device), torch.tensor(labels, device=device)


def _stream(recipe: Recipe, images: Images, labels: Tensor, preparation: Preparation) -> BatchStream:
    skips = recipe.data.training_skips
    return BatchStream(
        images=images,
        labels=labels,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        augmentation=recipe.augment,
        preparation=preparation,
        sizes=sizes_of_passes(recipe.data.training_scales, recipe.data.training_crops),
        sampling=recipe.data.sampling,
        skips=skips,
        difficulty=Difficulty.unknown(len(labels), labels.device) if any(skips) else None,
    )


def _untrained_model(recipe: Recipe, source: Source, stream: BatchStream, device: torch.device) -> nn.Module:
    """The network for the pictures of `stream`; a whitening layer is computed from the first of them."""
    preparation, classes = stream.preparation, len(source.classes)
    input_shape = 3, preparation.height, preparation.width
    if max(preparation.height, preparation.width) > OWN_SIZE:
        check_parameters(recipe.model, classes, input_shape)
    model = new_model(recipe, classes, input_shape, device)
    fit_whitening(model, lambda: preparation(_some_pictures(stream, source).permute(0, 3, 1, 2)))
    return model


def _some_pictures(stream: BatchStream, source: Source) -> Tensor:
    """The first training pictures; of picture files, which are in the order of their classes, from all of them.

    Of large pictures fewer, so that they take as much memory as small ones.
    """
    n, height, width, _ = stream.images.shape
    most = max(1, WHITENED_PICTURES * OWN_SIZE**2 // max(OWN_SIZE**2, height * width))
    step = 1 if source.reading is None else max(1, n // most)
    return stream.images[torch.arange(0, n, step, device=stream.labels.device)[:most]]


def _preparation(recipe: Recipe, images: Pictures, base: Run | None, resumed: Run | None) -> Preparation:
    """Fitted to `images` uint8 (N, H, W, 3), or else that of the network which training begins with."""
    fitted = Preparation.from_training_images(recipe.data.preparation, images, recipe.input.fit)
    if base is not None:
        theirs = base.load_preparation()
    elif resumed is not None and "preparation" in resumed.data.get("initial_weights", {}):
        theirs = Preparation.from_dict(resumed.data["initial_weights"]["preparation"])
    else:
        return fitted
    return replace(theirs, height=fitted.height, width=fitted.width, fit=fitted.fit)


def _begin_with(
    base: Run, recipe: Recipe, model: nn.Module, classes: tuple[str, ...], preparation: Preparation
) -> dict[str, Any]:
    frozen = frozen_layers(recipe.finetune, model, epoch=0) if recipe.finetune.freeze else set()
    new_layers = begin_with(model, base, classes, frozen)
    return {
        "run": str(base.path),
        "weights": base.default_weights,
        "sha256": base.weights_checksum(base.default_weights),
        "new_layers": new_layers,
        "preparation": asdict(preparation),
    }


def new_model(
    recipe: Recipe, classes: int, input_shape: tuple[int, int, int], device: torch.device
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(recipe.seed, WEIGHTS, 0))
        model = build_model(recipe.model, classes, input_shape)
    layout = torch.channels_last if recipe.device.channels_last else torch.contiguous_format
    return model.to(device, memory_format=layout)  # type: ignore[call-overload]


def new_optimizer(recipe: Recipe, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser over all that is ever trained; `model` is left frozen as in the first epoch."""
    freeze_for_epoch(recipe.finetune, model, math.inf)
    factors, own_kernels = rate_factors(recipe.finetune, model), recipe.device.winograd
    optimizer = build_optimizer(recipe.optimizer, model, device, factors, own_kernels=own_kernels)
    freeze_for_epoch(recipe.finetune, model, 0)
    return optimizer


def new_average(recipe: Recipe, model: nn.Module) -> AveragedModel | None:
    if recipe.ema.decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema.decay), use_buffers=True)


def _check_batches(recipe: Recipe, n_train: int, model: nn.Module) -> None:
    normalises = any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules())
    if normalises and 1 in (recipe.batch_size, n_train % recipe.batch_size):
        raise UserError(
            f"batch_size {recipe.batch_size} makes a batch of one of {n_train:,} training pictures, and batch"
            f" normalisation needs two or more: try {recipe.batch_size + 1 + (recipe.batch_size == 1)}"
        )


def _check_class_weights(recipe: Recipe, classes: tuple[str, ...]) -> None:
    weights = recipe.loss.class_weights
    if not isinstance(weights, str) and len(weights) != len(classes):
        raise UserError(
            f"loss.class_weights has {len(weights)} weights, and the data has {len(classes)} classes:"
            f" {one_of(classes[:5], 'and') if len(classes) <= 5 else ', '.join(classes[:5]) + ', ...'}"
        )


def _check_sizes(sizes: Sequence[Size], preparation: Preparation, model: nn.Module) -> None:
    example = next(model.parameters())
    for size in dict.fromkeys(size for size in sizes if size != WHOLE):
        height, width = size.cropped(preparation.height), size.cropped(preparation.width)
        try:
            with torch.no_grad():
                copy.deepcopy(model).eval()(example.new_zeros(1, 3, height, width))
        except RuntimeError:
            parts = {"data.training_scales": size.scale, "data.training_crops": size.crop}
            named = " and ".join(f"{part:g} in {field}" for field, part in parts.items() if part != 1.0)
            raise UserError(
                f"{named} makes pictures of {height}x{width} pixels, which this network cannot take: it has to pool"
                " over the whole picture, as airbench does, and pictures have to be large enough"
            ) from None

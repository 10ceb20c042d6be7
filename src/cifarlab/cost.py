"""What a whole training is expected to take, from a few measured steps; what one took in arithmetic."""

import copy
import math
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cifarlab.data.loader import Size, of_pass, sizes_of_passes
from cifarlab.features import cacheable_front, cacheable_layers, sample
from cifarlab.job import Job, new_average, new_optimizer
from cifarlab.models import describe_model
from cifarlab.run import Run
from cifarlab.training import judged_at_once, predict_logits, train_step, training_tensors
from cifarlab.transfer import freeze_for_epoch, frozen_layers

LONG_ENOUGH_SECONDS = 5.0  # of measuring, for each size of pictures
FLOP_PER_MULTIPLY_ADD = 2
GROWTH = 1.25  # of memory over a run (validation, figures, saving): vgg3-bn's 854 MB became 1,058 MB


@dataclass(frozen=True)
class Estimate:
    """What a whole training is expected to take, from a few measured steps."""

    elapsed_seconds: float
    seconds_per_epoch: float
    images_per_second: float
    memory_bytes: int
    disk_bytes: int


def estimate(job: Job, measured_steps: int = 8) -> Estimate:
    """Measure a few steps on a copy of the network and scale them to the whole run. Leaves no trace.

    Of a gradual unfreezing the last, most costly stretch is measured.
    """
    recipe = job.recipe
    with torch.random.fork_rng(devices=[]):
        trial, once_seconds = _through_frozen_layers(replace(job, model=copy.deepcopy(job.model)))
        trial = replace(
            trial,
            stream=replace(trial.stream, difficulty=None),
            average=new_average(recipe, trial.model),
            optimizer=new_optimizer(recipe, trial.model, job.device),
        )
        freeze_for_epoch(recipe.finetune, trial.model, math.inf)
        sizes = _sizes(job.stream.sizes, recipe.epochs)
        per_step = {size: _step_seconds(trial, size, measured_steps) for size in set(sizes)}
        validation_seconds = _validation_seconds(trial) * job.n_validation
    steps_seconds = sum(per_step[size] for size in sizes) * job.steps_per_epoch
    elapsed_seconds = once_seconds + steps_seconds + validation_seconds * recipe.epochs
    weights_bytes = sum(tensor.nbytes for tensor in job.weights.state_dict().values())
    kept = 2 if recipe.data.may_choose else 1  # last, and best where there is one
    state_bytes = sum(
        tensor.nbytes for tensor in training_tensors(replace(trial, stream=job.stream)).values()
    )
    return Estimate(
        elapsed_seconds=elapsed_seconds,
        seconds_per_epoch=(elapsed_seconds - once_seconds) / recipe.epochs,
        images_per_second=recipe.epochs
        * job.steps_per_epoch
        * min(recipe.batch_size, job.n_train)
        / steps_seconds,
        memory_bytes=_peak_memory_bytes(job.device),
        disk_bytes=state_bytes + weights_bytes * kept + 500 * recipe.epochs,
    )


def training_operations(run: Run, model: nn.Module) -> int:
    """Floating-point operations of a run's finished epochs: two for each multiply-add that `describe_model` counts.

    Going back, a layer costs as much as its forward pass once for the gradient of its weights, if it is trained, and
    once for that of its input, if a layer before it is. Pictures count in the size that they had in each epoch; what is
    computed once, of frozen layers, counts once. Validation and augmentation are left out.
    """
    recipe, data, rows = run.recipe, run.data, run.metrics
    if not rows:
        return 0
    shape, epochs = tuple(data["input_shape"]), len(rows)
    pictures = data["n_train"] + data["n_validation"]
    n_once = cacheable_front(recipe, model, shape, pictures)
    front = tuple(f"{name}." for name, _ in list(model.named_children())[:n_once])
    once = {row["name"] for row in describe_model(model, shape) if f"{row['name']}.".startswith(front)}
    sizes = _sizes(sizes_of_passes(recipe.data.training_scales, recipe.data.training_crops), epochs)
    of_size = {
        size: describe_model(model, (shape[0], size.cropped(shape[1]), size.cropped(shape[2])))
        for size in set(sizes)
    }
    per_picture = sum(
        _there_and_back(of_size[size], frozen_layers(recipe.finetune, model, epoch), once)
        for epoch, size in enumerate(sizes)
    )
    seen = min(rows[-1]["step"] * recipe.batch_size / epochs, data["n_train"])
    forward_once = sum(row["multiply_adds"] for row in of_size[sizes[0]] if row["name"] in once)
    return FLOP_PER_MULTIPLY_ADD * round(per_picture * seen + forward_once * pictures)


def _there_and_back(layers: list[dict[str, Any]], frozen: set[str], once: set[str]) -> int:
    """Multiply-adds of a step of training for one picture."""
    total, trained_before = 0, False
    for layer in layers:
        is_trained = layer["parameters"] > 0 and layer["name"] not in frozen
        if layer["name"] not in once:
            total += layer["multiply_adds"] * (1 + is_trained + trained_before)
        trained_before = trained_before or is_trained
    return total


def _sizes(passes: Sequence[Size], epochs: int) -> list[Size]:
    """Of the training pictures in each epoch."""
    return [of_pass(passes, epoch) for epoch in range(epochs)]


def _step_seconds(trial: Job, size: Size, measured_steps: int) -> float:
    """The median of up to `measured_steps` steps, after two that warm up; fewer where steps are long."""
    batches = replace(trial.stream, sizes=(size,)).from_step(0)
    seconds: list[float] = []
    for step in range(measured_steps + 2):
        began = time.perf_counter()
        train_step(trial, *next(batches), step, trial.recipe.optimizer.learning_rate)
        _synchronise(trial.device)
        seconds.append(time.perf_counter() - began)
        if step >= 2 and sum(seconds) > LONG_ENOUGH_SECONDS:
            break
    return statistics.median(seconds[2:])


def _through_frozen_layers(job: Job) -> tuple[Job, float]:
    """A small job that goes on from what is computed once, and the seconds that computing it takes; else `job`, 0."""
    layers = cacheable_layers(job)
    if layers == 0:
        return job, 0.0
    trial, seconds_per_picture = sample(job, layers, pictures=max(64, 2 * job.recipe.batch_size))
    return trial, seconds_per_picture * (job.n_train + job.n_validation)


def _validation_seconds(job: Job) -> float:
    """Of one picture."""
    if job.validation is None:
        return 0.0
    images, labels = job.validation
    few = min(judged_at_once(job.device), len(labels))
    predict_logits(job.judged_network, job.stream.prepare, images[:few])
    _synchronise(job.device)
    began = time.perf_counter()
    predict_logits(job.judged_network, job.stream.prepare, images[:few])
    _synchronise(job.device)
    return (time.perf_counter() - began) / few


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak * (1 if sys.platform == "darwin" else 1024) * GROWTH)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()

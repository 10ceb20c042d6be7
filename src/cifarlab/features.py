"""The outputs of frozen layers, computed once: what never changes need not be computed in every epoch.

Without augmentation, the first layers of a network that are frozen throughout give a picture the same output in
every epoch. Training then goes on from these outputs (`cached_layers` of the job), with the same results to rounding.
What took long is kept in the user's cache, under a name that is the checksum of all it depends on.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cifarlab.data.loader import Images
from cifarlab.environment import choose_precision
from cifarlab.errors import UserError
from cifarlab.files import cache_dir, sha256_of, write_atomic
from cifarlab.job import Job, autocast
from cifarlab.models.layers import Dropout, Flatten
from cifarlab.recipe import Recipe
from cifarlab.tensor_file import pieces
from cifarlab.transfer import frozen_layers, layers_of

MOST_KEPT_BYTES = 8 << 30  # of the disk for what is kept; beyond, what was not used for longest is deleted
MOST_BYTES = 2 << 30  # of memory for the outputs; beyond, they are computed in every epoch
KEPT_AFTER_SECONDS = 10.0  # what was computed faster is not kept on the disk
BATCH = 250  # pictures


@dataclass(frozen=True)
class FeaturesDone:
    """Progress in computing the outputs of the frozen layers, in pictures."""

    done: int
    total: int
    seconds_left: float


def cacheable_layers(job: Job) -> int:
    """How many of the network's first layers can be computed once; 0 with augmentation, or for want of memory."""
    return cacheable_front(job.recipe, job.model, job.input_shape, job.n_train + job.n_validation)


def cacheable_front(recipe: Recipe, model: nn.Module, input_shape: Sequence[int], n_pictures: int) -> int:
    """As `cacheable_layers`, of a network of this recipe for (C, H, W) pictures."""
    resized = recipe.data.training_scales or recipe.data.training_crops
    if not recipe.augment.changes_nothing or resized or not recipe.finetune.freeze:
        return 0
    if not isinstance(model, nn.Sequential):
        return 0
    count = _frozen_at_the_front(recipe, model)
    if count == 0 or _bytes(model, input_shape, count) * n_pictures > MOST_BYTES:
        return 0
    return count


def _frozen_at_the_front(recipe: Recipe, model: nn.Sequential) -> int:
    frozen = frozen_layers(recipe.finetune, model, math.inf)
    count = 0
    for place, layer in enumerate(model, start=1):
        name = next(name for name, module in model.named_children() if module is layer)
        leaves = {f"{name}.{leaf}" if leaf else name: each for leaf, each in layers_of(layer).items()}
        changing = (
            leaf for leaf, each in leaves.items() if list(each.parameters()) or isinstance(each, Dropout)
        )
        if isinstance(layer, Flatten) or any(leaf not in frozen for leaf in changing):
            break
        if count or list(layer.parameters()):
            count = place
    return count


def _bytes(model: nn.Sequential, input_shape: Sequence[int], count: int) -> int:
    """Of one picture's output."""
    with torch.no_grad():
        return model[:count](torch.zeros(1, *input_shape, device=next(model.parameters()).device)).nbytes


def with_features(job: Job, count: int) -> Generator[FeaturesDone, None, Job]:
    """The job that trains on the outputs of the first `count` layers in place of pictures; yields progress."""
    began = time.perf_counter()
    done, total = 0, job.n_train + job.n_validation
    pictures = [job.stream.images] + ([] if job.validation is None else [job.validation[0]])
    every: list[Tensor] = []
    for images, training in zip(pictures, (True, False), strict=False):
        kept = _kept_file(job, count, images, training)
        features = _load(kept, job.device)
        if features is None:
            began_here = time.perf_counter()
            for outputs_so_far, computed in _computed(job, count, images, training):
                features = outputs_so_far
                per_picture = (time.perf_counter() - began) / (done + computed)
                yield FeaturesDone(done + computed, total, per_picture * (total - done - computed))
            assert features is not None
            if time.perf_counter() - began_here > KEPT_AFTER_SECONDS:
                _keep(kept, features)
        done += len(images)
        every.append(features)
    return _going_on_from(job, count, *every)


def sample(job: Job, count: int, pictures: int) -> tuple[Job, float]:
    """As `with_features` of a job of the first `pictures` alone, and the seconds that it took a picture."""
    few = job.stream.images[:pictures]
    began = time.perf_counter()
    *_, (features, _) = _computed(job, count, few, True)
    seconds = (time.perf_counter() - began) / len(few)
    labels = job.stream.labels[:pictures]
    stream = replace(job.stream, images=few, labels=labels, difficulty=None)
    validation = None if job.validation is None else (few, labels)
    return _going_on_from(
        replace(job, stream=stream, validation=validation), count, features, features
    ), seconds


def _going_on_from(job: Job, count: int, train: Tensor, validation: Tensor | None = None) -> Job:
    stream = replace(job.stream, images=train, prepared=True)
    held_out = None if job.validation is None or validation is None else (validation, job.validation[1])
    return replace(job, stream=stream, validation=held_out, cached_layers=count)


def _computed(job: Job, count: int, images: Images, training: bool) -> Iterator[tuple[Tensor, int]]:
    """float32 (N, H, W, C) outputs of the first `count` layers for uint8 (N, H, W, 3) pictures, and how many of them
    are there yet."""
    front: nn.Module = job.model[:count]  # type: ignore[index]
    front.eval()  # as they are: all of them are frozen
    outputs, done = torch.empty(0), 0
    for batch in images.split(BATCH):
        with torch.no_grad(), autocast(job) if training else contextlib.nullcontext():
            part = front(job.stream.preparation(batch.permute(0, 3, 1, 2))).float().permute(0, 2, 3, 1)
        if done == 0:
            outputs = torch.empty(len(images), *part.shape[1:], device=part.device)
        outputs[done : done + len(part)] = part
        done += len(part)
        yield outputs, done


# Kept on the disk


def _kept_file(job: Job, count: int, images: Images, training: bool) -> Path:
    """Named after everything that the outputs depend on, to the bit."""
    front: nn.Module = job.model[:count]  # type: ignore[index]
    settings = {
        "layers": str(front),
        "preparation": asdict(job.stream.preparation),
        "device": job.device.type,
        "threads": torch.get_num_threads() if job.device.type == "cpu" else None,
        "torch": torch.__version__,
        "precision": choose_precision(job.recipe.device, job.device) if training else "float32",
        "channels_last": job.recipe.device.channels_last,
        "shape": list(images.shape),
    }
    digest = hashlib.sha256(json.dumps(settings).encode())
    for tensor in (*front.state_dict().values(), *images.split(BATCH)):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return cache_dir() / "features" / f"{digest.hexdigest()}.safetensors"


def _load(path: Path, device: torch.device) -> Tensor | None:
    """What was kept, if it is what was written; None if it is missing or damaged."""
    try:
        if path.with_suffix(".sha256").read_text() != sha256_of(path):
            return None
        features = load_file(path, str(device))["features"]
        path.touch()  # used now
        return features
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _keep(path: Path, features: Tensor) -> None:
    with contextlib.suppress(UserError, OSError):  # without it the next training takes longer, that is all
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = write_atomic(path, pieces({"features": features}))
        write_atomic(path.with_suffix(".sha256"), digest.encode())
        _forget_oldest(path)


def _forget_oldest(newest: Path) -> None:
    """Delete what was not used for longest until the rest, `newest` in it whatever its size, is small enough."""
    by_age = sorted(newest.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    bytes_so_far = newest.stat().st_size
    for path in by_age:
        if path == newest:
            continue
        bytes_so_far += path.stat().st_size
        if bytes_so_far > MOST_KEPT_BYTES:
            path.with_suffix(".sha256").unlink(missing_ok=True)
            path.unlink(missing_ok=True)

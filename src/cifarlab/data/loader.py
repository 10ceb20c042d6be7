"""Batches of training pictures, a pure function of (seed, step): what resumes exactly needs no random state saved.

Where passes leave out easy pictures, the batches follow from the losses in `Difficulty` too, and those are saved.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cifarlab.data import augment
from cifarlab.data.difficulty import Difficulty, without_easy
from cifarlab.data.mapped import MappedPictures, Pictures
from cifarlab.preparation import Preparation
from cifarlab.recipe import Augment

ORDER, AUGMENT, DROPOUT, WEIGHTS, FLIP, SKIP = range(6)


def derived_seed(seed: int, stream: int, index: int) -> int:
    """An independent 63-bit seed for item `index` of a random stream (data order, augmentation, dropout, weights)."""
    words = np.random.SeedSequence((seed, stream, index)).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


@dataclass(frozen=True, eq=False)
class ImagesOnDisk:
    """Pictures uint8 (N, H, W, 3) that stay on the disk: what is taken of them comes to the training device."""

    pictures: MappedPictures
    device: torch.device

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pictures.shape

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        places = chosen.cpu().numpy() if isinstance(chosen, Tensor) else chosen
        return torch.from_numpy(self.pictures[places]).to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        return (self[first : first + size] for first in range(0, len(self), size))

    def expect(self, chosen: Tensor) -> None:
        self.pictures.expect(chosen.cpu().numpy())


Images = Tensor | ImagesOnDisk


def on_device(pictures: Pictures, device: torch.device) -> Images:
    """A copy of them on the device, or, where they stay on the disk, what brings them there."""
    if isinstance(pictures, MappedPictures):
        return ImagesOnDisk(pictures, device)
    return torch.tensor(pictures, device=device)


@dataclass(frozen=True)
class Size:
    """Height and width that training pictures are scaled to, as parts of their own, and of that what is left about the
    centre once the edges are cut off."""

    scale: float = 1.0
    crop: float = 1.0

    def scaled(self, side: int) -> int:
        return round(self.scale * side)

    def cropped(self, side: int) -> int:
        return round(self.crop * self.scaled(side))

    def edge(self, side: int) -> int:
        """Pixels cut off above, or on the left."""
        return (self.scaled(side) - self.cropped(side)) // 2


WHOLE = Size()


def sizes_of_passes(scales: Sequence[float], crops: Sequence[float]) -> tuple[Size, ...]:
    """Of a recipe's `data.training_scales` and `data.training_crops`: one, as they are, where both are empty."""
    passes = range(max(1, len(scales), len(crops)))
    return tuple(Size(of_pass(scales or (1.0,), each), of_pass(crops or (1.0,), each)) for each in passes)


Value = TypeVar("Value")


def of_pass(values: Sequence[Value], one_pass: int) -> Value:
    """What `values` says for a pass over the data; the last is for all that follow."""
    return values[min(one_pass, len(values) - 1)]


@dataclass(frozen=True, eq=False)
class BatchStream:
    """An endless shuffled stream over the training pictures, cut into batches.

    A pass over all pictures has ceil(n / batch_size) batches, the last of which may be short; a new order and new
    augmentation are drawn for each pass. With `augmentation.copies` above 1 each picture stands that many times in
    its batch, changed in as many ways.

    Attributes:
        images: uint8 (N, H, W, 3), on the training device or on their way to it; or what was computed from them, where
            `prepared`.
        labels: int64 (N,), on the training device.
        sampling: "shuffled", or "balanced": the recipe's `data.sampling`.
        sizes: of the pictures, one for every `batches_per_pass` steps, the last for all that follow.
        skips: the part of the pictures, easy ones, that a pass leaves out, counted like `sizes` by its first step.
        difficulty: what `skips` goes by. It changes as the stream goes on, and whoever trains on a batch tells it the
            losses (`note`); a stream made by `replace` shares it. None: nothing is left out.
    """

    images: Images
    labels: Tensor
    batch_size: int
    seed: int
    augmentation: Augment
    preparation: Preparation
    prepared: bool = False
    sizes: tuple[Size, ...] = (Size(),)
    sampling: str = "shuffled"
    skips: tuple[float, ...] = ()
    difficulty: Difficulty | None = None

    @property
    def batches_per_pass(self) -> int:
        """Of a pass that leaves nothing out."""
        return math.ceil(len(self.labels) / self.batch_size)

    def from_step(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from global step `step` on: prepared pictures float32 (B, 3, H, W), channels last in memory, and
        labels int64 (B,). Where there is a `difficulty`, it has to be as it was at that step."""
        one_pass, first_step = self._pass_at(step)
        assert first_step <= step, "its difficulty is further on"
        size = self.batch_size * self.augmentation.copies
        while True:
            order, draws = self._plan(one_pass, first_step)
            for first in range((step - first_step) * size, len(order), size):
                scaling = of_pass(self.sizes, step // self.batches_per_pass)
                last = min(first + size, len(order))
                chosen = order[first:last]
                images = self.images[chosen].permute(0, 3, 1, 2)
                if isinstance(self.images, ImagesOnDisk):
                    self.images.expect(order[last : last + size])
                batch_draws = None if draws is None else draws.slice(first, last)
                _, _, height, width = images.shape
                if batch_draws is not None:
                    images = augment.apply(images, batch_draws)
                images = self.prepare(images if self.prepared else self._resized(images, scaling))
                if batch_draws is not None:
                    cuts = _cut_where_resized(batch_draws, scaling, height, width)
                    images = augment.cut_out(images, cuts, scaling.scaled(self.augmentation.cutout))
                if self.difficulty is not None:
                    self.difficulty.batch = chosen[:: self.augmentation.copies]
                yield images, self.labels[chosen]
                step += 1
            one_pass, first_step = one_pass + 1, step
            if self.difficulty is not None:
                self.difficulty.begin_pass(one_pass, first_step)

    def _pass_at(self, step: int) -> tuple[int, int]:
        """The pass that has the global step `step`, or ends just before it, and the step that it begins with."""
        if self.difficulty is not None:
            return self.difficulty.one_pass, self.difficulty.first_step
        one_pass = step // self.batches_per_pass
        return one_pass, one_pass * self.batches_per_pass

    def _resized(self, images: Tensor, size: Size) -> Tensor:
        if size == WHOLE:
            return images
        _, _, height, width = images.shape
        scaled = size.scaled(height), size.scaled(width)
        if scaled != (height, width):
            if images.device.type != "cpu":  # where PyTorch scales uint8 pictures, and fastest
                images = images.float()
            images = F.interpolate(images, scaled, mode="bilinear", antialias=True)
        top, left = size.edge(height), size.edge(width)
        return images[:, :, top : top + size.cropped(height), left : left + size.cropped(width)]

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 pictures (B, 3, H, W) -> inputs float32 (B, 3, H, W); what is prepared already stays as it is."""
        return images if self.prepared else self.preparation(images)

    def _plan(self, one_pass: int, first_step: int) -> tuple[Tensor, augment.Draws | None]:
        """The order of a pass that begins with step `first_step`, copies one after the other, and the augmentation of
        each, in that order."""
        count, height, width, _ = self.images.shape
        copies = self.augmentation.copies
        rng = np.random.Generator(np.random.PCG64(derived_seed(self.seed, ORDER, one_pass)))
        if self.sampling == "balanced":
            pictures = balanced_order(self.labels.cpu().numpy(), rng)
        else:
            pictures = rng.permutation(count)
        pictures = self._without_easy(pictures, one_pass, first_step)
        order = torch.from_numpy(pictures.repeat(copies)).to(self.labels.device)
        draws = augment.draw(
            self.augmentation, len(order), height, width, seed=derived_seed(self.seed, AUGMENT, one_pass)
        )
        if draws is not None and self.augmentation.flip_rule == "alternating":
            rng = np.random.Generator(np.random.PCG64(derived_seed(self.seed, FLIP, 0)))
            flipped_first = torch.from_numpy(rng.random(count) < self.augmentation.flip)
            turn = (one_pass + torch.arange(len(order))) % 2 if copies > 1 else torch.tensor(one_pass % 2)
            draws = replace(draws, flip=flipped_first[order.cpu()] ^ turn.bool())
        return order, None if draws is None else draws.to(self.labels.device)

    def _without_easy(self, pictures: np.ndarray, one_pass: int, first_step: int) -> np.ndarray:
        if self.difficulty is None:
            return pictures
        part = of_pass(self.skips, first_step // self.batches_per_pass)
        if part == 0.0:
            return pictures
        rng = np.random.Generator(np.random.PCG64(derived_seed(self.seed, SKIP, one_pass)))
        return without_easy(
            pictures, self.difficulty.losses_at_pass.cpu().numpy(), part, self.batch_size, rng
        )


def _cut_where_resized(draws: augment.Draws, size: Size, height: int, width: int) -> augment.Draws:
    """The squares to cut out of pictures of `height` x `width`, at their places once pictures are resized."""
    if draws.cut_y is None or draws.cut_x is None:
        return draws
    return replace(
        draws,
        cut_y=(draws.cut_y * size.scale).round().long() - size.edge(height),
        cut_x=(draws.cut_x * size.scale).round().long() - size.edge(width),
    )


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices int64 (N,) into `labels` (N,), shuffled: each class that is there as often as any other, to within one.

    A class with fewer pictures than its share gives all of them, as often as they go into it, and some once more;
    one with more gives some of them.
    """
    classes = np.unique(labels)
    share, left = divmod(len(labels), len(classes))
    shares = share + (rng.permutation(len(classes)) < left)
    chosen = []
    for label, wanted in zip(classes, shares, strict=True):
        of_class = np.flatnonzero(labels == label)
        times, some = divmod(int(wanted), len(of_class))
        chosen += [np.tile(of_class, times), rng.permutation(of_class)[:some]]
    return rng.permutation(np.concatenate(chosen))

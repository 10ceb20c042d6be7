"""A learning-rate range test: train a copy for a few hundred steps while the rate grows, and see where the loss falls.

The idea is Smith's (Cyclical learning rates, arXiv 1506.01186, section 3.3). The rate grows by the same factor at every
step, so that each order of magnitude gets as many, and the loss is smoothed, as in Gugger, "How do you find a good
learning rate" (2018). Nothing of it stays: weights, optimiser and random state are a copy's.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from cifarlab.errors import DivergedError, UserError
from cifarlab.job import Job, new_average, new_optimizer
from cifarlab.training import train_step

SMOOTHING = 0.95  # weight of the past in the smoothed loss, corrected for its start
BLOWN_UP = 4.0  # times the lowest smoothed loss: the test ends there
SAFETY = 10.0  # the suggestion stays this factor below the rate of the lowest loss
SETTLED = 20  # steps before which the smoothed loss is the loss of a few batches: nothing is read from them
LEAST_FALL = 0.02  # of the first loss: with less there is nothing to suggest


@dataclass(frozen=True)
class RangeTest:
    """What was measured at each step, and what follows from it. Rates are in the optimiser's unit, losses in nats."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool

    @property
    def settled(self) -> int:
        """The first step whose smoothed loss is looked at."""
        return min(SETTLED, len(self.smoothed) // 4)

    @property
    def lowest(self) -> int:
        """The step of the lowest smoothed loss."""
        return min(range(self.settled, len(self.smoothed)), key=self.smoothed.__getitem__)

    @property
    def steepest(self) -> int | None:
        """The step at which the smoothed loss falls fastest over the rate's logarithm; None where it never falls."""
        width = max(1, len(self.smoothed) // 20)
        falls = {
            step: self.smoothed[step - width] - self.smoothed[step + width]
            for step in range(self.settled + width, min(self.lowest + 1, len(self.smoothed) - width))
        }
        return max(falls, key=falls.__getitem__) if falls else None

    @property
    def falls(self) -> bool:
        first = statistics.fmean(self.losses[: self.settled + 1])
        return first - self.smoothed[self.lowest] > LEAST_FALL * abs(first)

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate of the lowest loss; None where the loss does not fall."""
        return float(f"{self.rates[self.lowest] / SAFETY:.2g}") if self.falls else None

    @property
    def reasoning(self) -> str:
        first, last = self.rates[0], self.rates[-1]
        if self.suggestion is None:
            return f"the loss does not fall anywhere between {first:.2g} and {last:.2g}: try other ends, or more steps"
        low = self.rates[self.lowest]
        if self.diverged:
            end = f"it blows up at {last:.2g}"
        elif self.lowest >= 0.98 * len(self.rates):
            end = f"it still falls at {last:.2g}, so a larger --high may show more"
        else:
            end = f"it has not blown up by {last:.2g}"
        steepest = "" if self.steepest is None else f"falls fastest at {self.rates[self.steepest]:.2g}, "
        return (
            f"the smoothed loss {steepest}is lowest at {low:.2g}, and {end}; suggested is a tenth of the rate of the"
            " lowest loss, where it still falls steadily"
        )


def range_test(job: Job, *, low: float = 1e-6, high: float = 10.0, steps: int = 300) -> RangeTest:
    """Train a copy of the network from `low` to `high` by the recipe's own steps: its optimiser, batch norm, dropout,
    augmentation and batches. Ends early when the loss blows up.

    Raises:
        UserError: when the ends or the number of steps make no sense.
    """
    if not 0.0 < low < high < math.inf:
        raise UserError(f"--low should be above 0 and below --high, {low:g} and {high:g} given")
    if not 20 <= steps <= 100_000:
        raise UserError(f"--steps should be 20 to 100,000, {steps:,} given")
    devices = [torch.cuda.current_device()] if job.device.type == "cuda" else []
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    with torch.random.fork_rng(devices=devices):
        for rate, loss in _measured(_copy(job), low, high, steps):
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            corrected = average / (1 - SMOOTHING ** (len(losses) + 1))
            if not math.isfinite(loss) and not losses:
                raise DivergedError(
                    f"the loss is not finite in the first step, at a learning rate of {rate:.2g}: the network or its"
                    " pictures are at fault, not the rate"
                )
            if not math.isfinite(loss) or (losses and corrected > BLOWN_UP * min(smoothed)):
                return RangeTest(rates, losses, smoothed, diverged=True)
            rates.append(rate)
            losses.append(loss)
            smoothed.append(corrected)
    return RangeTest(rates, losses, smoothed, diverged=False)


def _copy(job: Job) -> Job:
    model = copy.deepcopy(job.model)
    optimizer = new_optimizer(job.recipe, model, job.device)
    stream, average = replace(job.stream, difficulty=None), new_average(job.recipe, model)
    return replace(job, model=model, stream=stream, average=average, optimizer=optimizer)


def _measured(trial: Job, low: float, high: float, steps: int) -> Iterator[tuple[float, float]]:
    batches = trial.stream.from_step(0)
    for step in range(steps):
        rate = low * (high / low) ** (step / (steps - 1))
        loss, _ = train_step(trial, *next(batches), step, rate)
        yield rate, loss.item()


def as_document(recipe: str, test: RangeTest, figure: str) -> dict[str, Any]:
    """The JSON of `cifarlab lr-find`."""
    steepest = None if test.steepest is None else test.rates[test.steepest]
    return {
        "recipe": recipe,
        "suggestion": test.suggestion,
        "reasoning": test.reasoning,
        "lowest": test.rates[test.lowest],
        "steepest": steepest,
        "diverged": test.diverged,
        "figure": figure,
        "steps": [
            {"learning_rate": rate, "loss": loss, "smoothed_loss": smooth}
            for rate, loss, smooth in zip(test.rates, test.losses, test.smoothed, strict=True)
        ],
    }

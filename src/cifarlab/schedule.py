"""What the learning rate is multiplied by at each step: pure functions of the step, free of torch.

Steps and epochs are counted from 0 over the whole run. Functions of whole epochs get `epochs`, functions of single
steps get `step`; `steps_per_epoch` is the one bridge between them.
"""

import math
from collections.abc import Sequence

from cifarlab.recipe import (
    Constant,
    Cosine,
    Cyclical,
    InverseTime,
    Linear,
    OneCycle,
    Plateau,
    Schedule,
    Step,
)


def learning_rate_factor(
    schedule: Schedule,
    *,
    step: int,
    steps_per_epoch: int,
    epochs: int,
    validation_losses: Sequence[float],
) -> float:
    """What `optimizer.learning_rate` is multiplied by at `step`: finite, at least 0.

    Args:
        schedule: the recipe's.
        step: counted from 0 over the whole run.
        steps_per_epoch: at least 1.
        epochs: the planned length of the run. Cosine without restarts, one-cycle and linear are stretched over it,
            the others do not look at it.
        validation_losses: one for each finished epoch; only plateau looks at it.
    """
    match schedule:
        case Constant():
            return 1.0
        case Step():
            return step_factor(schedule, step, steps_per_epoch)
        case InverseTime():
            return 1.0 / (1.0 + schedule.decay_per_step * step)
        case Cosine():
            return cosine_factor(schedule, step, steps_per_epoch, epochs * steps_per_epoch)
        case Cyclical():
            return cyclical_factor(schedule, step, steps_per_epoch)
        case OneCycle():
            return one_cycle_factor(schedule, step, epochs * steps_per_epoch)
        case Linear():
            return linear_factor(schedule, step, steps_per_epoch, epochs * steps_per_epoch)
        case Plateau():
            return plateau_factor(schedule, validation_losses)
    raise AssertionError(f"no rule for {schedule!r}")


def step_factor(schedule: Step, step: int, steps_per_epoch: int) -> float:
    """The factor of the last of `schedule.epochs` that has begun, over Keras's `decay`."""
    epoch = step // steps_per_epoch
    factor = 1.0
    for first_epoch, its_factor in zip(schedule.epochs, schedule.factors, strict=True):
        if epoch >= first_epoch:
            factor = its_factor
    return factor / (1.0 + schedule.decay_per_step * step)


def cosine_factor(schedule: Cosine, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """SGDR, equation 5 of arXiv 1608.03983, after the warm-up. The final factor is met at the end of the last step."""
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    since = step - warmup_steps
    if schedule.restart_epochs is None:
        return _half_cosine(1.0, schedule.final_factor, _part(since, total_steps - warmup_steps))
    cycle_steps = schedule.restart_epochs * steps_per_epoch
    while since >= cycle_steps:
        since -= cycle_steps
        cycle_steps *= schedule.restart_multiplier
    return _half_cosine(1.0, schedule.final_factor, since / cycle_steps)


def linear_factor(schedule: Linear, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Warm-up, then a straight line. The final factor is met at the end of the last step."""
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    return 1.0 + (schedule.final_factor - 1.0) * _part(step - warmup_steps, total_steps - warmup_steps)


def cyclical_factor(schedule: Cyclical, step: int, steps_per_epoch: int) -> float:
    """The triangular policy of arXiv 1506.01186: 1 at the ends of a cycle, the peak in its middle."""
    phase = step / (schedule.cycle_epochs * steps_per_epoch) % 1.0
    return 1.0 + (schedule.peak_factor - 1.0) * (1.0 - abs(2.0 * phase - 1.0))


def one_cycle_factor(schedule: OneCycle, step: int, total_steps: int) -> float:
    """arXiv 1708.07120 in half cosines, as torch's OneCycleLR: the last step of the run has the smallest rate."""
    peak_step = max(schedule.warmup_fraction * total_steps - 1.0, 0.0)
    if step < peak_step:
        return _half_cosine(1.0 / schedule.start_divisor, 1.0, step / peak_step)
    return _half_cosine(
        1.0, 1.0 / schedule.final_divisor, _part(step - peak_step, total_steps - 1 - peak_step)
    )


def plateau_factor(schedule: Plateau, validation_losses: Sequence[float]) -> float:
    """Keras's ReduceLROnPlateau without cooldown: the wait starts anew after every reduction."""
    factor, best, waited_epochs = 1.0, math.inf, 0
    for loss in validation_losses:
        if loss < best - schedule.min_delta:
            best, waited_epochs = loss, 0
            continue
        waited_epochs += 1
        if waited_epochs >= schedule.patience_epochs and factor > schedule.minimum_factor:
            factor, waited_epochs = max(factor * schedule.factor, schedule.minimum_factor), 0
    return factor


def _warmup(step: int, warmup_steps: float) -> float:
    """A straight line whose first step is already above 0 and whose last is 1."""
    return min((step + 1) / warmup_steps, 1.0)


def _half_cosine(start: float, end: float, part: float) -> float:
    """From `start` at part 0 to `end` at part 1."""
    return end + (start - end) * (1.0 + math.cos(math.pi * part)) / 2.0


def _part(steps: float, of_steps: float) -> float:
    """How far `steps` are through `of_steps`, 0..1; a stretch of no length is over at its start."""
    return min(steps / of_steps, 1.0) if of_steps > 0.0 else 1.0

"""The schedules against closed forms, against torch's own schedulers step by step, and for what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarlab.recipe import (
    Constant,
    Cosine,
    Cyclical,
    InverseTime,
    Linear,
    OneCycle,
    Plateau,
    Step,
    tied_to_total,
)
from cifarlab.schedule import learning_rate_factor

STEPS_PER_EPOCH, EPOCHS = 7, 12
TOTAL = STEPS_PER_EPOCH * EPOCHS


def factor(schedule, step, *, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS, losses=()):
    return learning_rate_factor(
        schedule, step=step, steps_per_epoch=steps_per_epoch, epochs=epochs, validation_losses=losses
    )


def factors(schedule, steps=TOTAL, **sizes):
    return [factor(schedule, step, **sizes) for step in range(steps)]


def torch_rates(make_scheduler, steps=TOTAL):
    """The rates that a torch scheduler, stepped after every optimiser step, gives for a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant():
    assert factors(Constant()) == [1.0] * TOTAL


def test_step_changes_at_the_first_step_of_its_epoch():
    schedule = Step(epochs=(2, 5), factors=(0.5, 0.1))
    assert factors(schedule) == [1.0] * 14 + [0.5] * 21 + [0.1] * (TOTAL - 35)


def test_step_with_decay_is_the_rule_of_the_elu_network():
    """Rate 0.001 for 76 epochs, 0.0005 for 25, 0.0003 for 24, over 1 + 1e-6 * step: 782 steps an epoch."""
    schedule = Step(epochs=(76, 101), factors=(0.5, 0.3), decay_per_step=1e-6)
    rates = [0.001] * 76 + [0.0005] * 25 + [0.0003] * 24
    for epoch, rate in enumerate(rates):
        for step in (epoch * 782, epoch * 782 + 781):
            got = 0.001 * factor(schedule, step, steps_per_epoch=782, epochs=125)
            assert got == pytest.approx(rate / (1.0 + 1e-6 * step), rel=1e-12)


def test_inverse_time():
    assert factors(InverseTime(decay_per_step=0.01)) == pytest.approx(
        [1 / (1 + 0.01 * step) for step in range(TOTAL)]
    )


@pytest.mark.parametrize("final_factor", [0.0, 0.1])
def test_cosine_equals_torch(final_factor):
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=final_factor)
    )
    assert factors(Cosine(final_factor=final_factor)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_cosine_with_restarts_equals_torch(multiplier):
    schedule = Cosine(restart_epochs=2, restart_multiplier=multiplier, final_factor=0.05)
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            o, T_0=2 * STEPS_PER_EPOCH, T_mult=multiplier, eta_min=0.05
        )
    )
    assert factors(schedule) == pytest.approx(expected, abs=1e-9)


def test_cosine_warmup_rises_in_a_line_then_the_cosine_spans_the_rest():
    got = factors(Cosine(warmup_epochs=2.0))
    assert got[:14] == pytest.approx([(step + 1) / 14 for step in range(14)])
    assert got[14:] == pytest.approx(
        [(1 + math.cos(math.pi * s / (TOTAL - 14))) / 2 for s in range(TOTAL - 14)]
    )


def test_restarts_begin_after_the_warmup():
    got = factors(Cosine(warmup_epochs=1.5, restart_epochs=2))
    assert max(got[:11]) == 1.0 and min(got[:11]) == pytest.approx(1 / 10.5)
    since = [11 - 10.5, 11 - 10.5 + 14]  # one whole cycle apart
    assert got[11] == pytest.approx((1 + math.cos(math.pi * since[0] / 14)) / 2)
    assert got[25] == pytest.approx(got[11])


def test_linear():
    got = factors(Linear(warmup_epochs=1.0, final_factor=0.2))
    assert got[:7] == pytest.approx([(step + 1) / 7 for step in range(7)])
    assert got[7:] == pytest.approx([1.0 - 0.8 * s / (TOTAL - 7) for s in range(TOTAL - 7)])
    assert factor(Linear(final_factor=0.2), TOTAL) == pytest.approx(0.2)


def test_cyclical_equals_torch():
    schedule = Cyclical(cycle_epochs=4.0, peak_factor=6.0)
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CyclicLR(
            o,
            base_lr=1.0,
            max_lr=6.0,
            step_size_up=2 * STEPS_PER_EPOCH,
            mode="triangular",
            cycle_momentum=False,
        )
    )
    assert factors(schedule) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("warmup_fraction", [0.3, 0.45])
def test_one_cycle_equals_torch(warmup_fraction):
    schedule = OneCycle(warmup_fraction=warmup_fraction, start_divisor=25.0, final_divisor=1e4)
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o,
            max_lr=1.0,
            total_steps=TOTAL
            + 1,  # torch counts the call after the last step; its own schedule is for TOTAL below
            pct_start=warmup_fraction,
            div_factor=25.0,
            final_div_factor=1e4 / 25.0,
            cycle_momentum=False,
        )
    )
    got = factors(schedule, TOTAL + 1, epochs=1, steps_per_epoch=TOTAL + 1)[:TOTAL]
    assert got == pytest.approx(expected, abs=1e-9)


def test_one_cycle_ends_at_its_smallest_rate():
    assert factor(OneCycle(), 0) == pytest.approx(1 / 25)
    assert factor(OneCycle(), TOTAL - 1) == pytest.approx(1e-4)
    assert max(factors(OneCycle())) == pytest.approx(1.0, abs=1e-2)


LOSSES = [1.0, 0.8, 0.79995, 0.8, 0.81, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]


@pytest.mark.parametrize("patience_epochs", [1, 2, 3])
def test_plateau_equals_torch(patience_epochs):
    """Torch waits for one epoch more than its patience, Keras for its patience."""
    schedule = Plateau(factor=0.5, patience_epochs=patience_epochs, min_delta=1e-4, minimum_factor=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience_epochs - 1, threshold=1e-4, threshold_mode="abs", min_lr=0.1
    )
    for epoch in range(len(LOSSES)):
        step = epoch * STEPS_PER_EPOCH
        assert factor(schedule, step, losses=LOSSES[:epoch]) == pytest.approx(optimizer.param_groups[0]["lr"])
        scheduler.step(LOSSES[epoch])
    assert factor(schedule, TOTAL, losses=LOSSES) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert factor(schedule, TOTAL, losses=LOSSES) < 0.6


def test_plateau_by_hand():
    schedule = Plateau(factor=0.1, patience_epochs=2, min_delta=0.0)
    got = [factor(schedule, 0, losses=[1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.4][:n]) for n in range(9)]
    assert got == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])


FREE_OF_TOTAL = st.one_of(
    st.just(Constant()),
    st.builds(InverseTime, decay_per_step=st.floats(0, 1)),
    st.builds(
        lambda epochs, factors, decay: Step(
            epochs=tuple(sorted(epochs)), factors=tuple(factors[: len(epochs)]), decay_per_step=decay
        ),
        st.sets(st.integers(1, 50), min_size=1, max_size=3),
        st.lists(st.floats(0, 10), min_size=3, max_size=3),
        st.floats(0, 1e-3),
    ),
    st.builds(Cyclical, cycle_epochs=st.floats(0.1, 20), peak_factor=st.floats(1, 10)),
    st.builds(
        Cosine,
        warmup_epochs=st.floats(0, 5),
        final_factor=st.floats(0, 1),
        restart_epochs=st.integers(1, 5),
        restart_multiplier=st.integers(1, 3),
    ),
    st.builds(Plateau, factor=st.floats(0.01, 0.99), patience_epochs=st.integers(1, 5)),
)
TIED_TO_TOTAL = st.one_of(
    st.builds(Cosine, warmup_epochs=st.floats(0, 200), final_factor=st.floats(0, 1)),
    st.builds(Linear, warmup_epochs=st.floats(0, 200), final_factor=st.floats(0, 1)),
    st.builds(OneCycle, warmup_fraction=st.floats(0.01, 0.99)),
)
LOSS_LISTS = st.lists(st.floats(0, 10) | st.just(math.nan), max_size=20)


@given(
    schedule=FREE_OF_TOTAL | TIED_TO_TOTAL,
    steps_per_epoch=st.integers(1, 800),
    epochs=st.integers(1, 100),
    part=st.floats(0, 1, exclude_max=True),
    losses=LOSS_LISTS,
)
def test_factor_is_finite_and_not_negative(schedule, steps_per_epoch, epochs, part, losses):
    step = int(part * steps_per_epoch * epochs)
    got = factor(schedule, step, steps_per_epoch=steps_per_epoch, epochs=epochs, losses=losses)
    assert math.isfinite(got) and 0.0 <= got <= 10.0


@given(
    schedule=FREE_OF_TOTAL,
    step=st.integers(0, 50_000),
    steps_per_epoch=st.integers(1, 800),
    totals=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    losses=LOSS_LISTS,
)
def test_rates_of_a_run_do_not_change_when_it_is_made_longer(schedule, step, steps_per_epoch, totals, losses):
    assert not tied_to_total(schedule)
    first, second = (
        factor(schedule, step, steps_per_epoch=steps_per_epoch, epochs=epochs, losses=losses)
        for epochs in totals
    )
    assert first == second


@given(schedule=TIED_TO_TOTAL)
def test_tied_schedules_say_so(schedule):
    assert tied_to_total(schedule)

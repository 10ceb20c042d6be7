"""Passes over the data that leave out easy pictures (`data.training_skips`)."""

import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cifarlab import Interrupted, Run, UserError, training
from cifarlab.cost import estimate
from cifarlab.data.difficulty import Difficulty, without_easy
from cifarlab.data.loader import DROPOUT, BatchStream, Size, derived_seed
from cifarlab.preparation import Preparation
from cifarlab.range_test import range_test
from cifarlab.recipe import Augment, override
from tests.test_resume import StopAfter, exact, run_in
from tests.tiny import RECIPE, tiny_source, use_source

SKIPS = {"data.training_skips": [0.0, 0.4, 0.3], "epochs": 4}


@given(st.integers(1, 200), st.floats(0, 0.5), st.integers(1, 60), st.integers(0, 99))
@example(50, 0.25, 1, 0)
def test_what_is_left_out_is_of_the_easier_half(n: int, part: float, batch_size: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    pictures, losses = draws.permutation(n), draws.random(n)
    kept = without_easy(pictures, losses, part, batch_size, draws)
    assert [each for each in pictures if each in set(kept)] == kept.tolist()  # in their order, none twice
    left_out = np.setdiff1d(pictures, kept)
    assert np.isin(losses[left_out], np.sort(losses)[: n // 2]).all()
    assert abs(len(left_out) - part * n) <= batch_size
    if len(left_out):
        assert len(kept) % batch_size == 0 and -(-n // batch_size) > len(kept) // batch_size >= 1


@pytest.mark.parametrize(
    ("n", "part", "kept"),
    [
        (50_000, 0.25, 37_000),  # as near to 37,500 with fewer steps
        (5_000, 0.25, 4_000),
        (2_600, 0.25, 2_000),
        (2_100, 0.5, 2_000),  # no more than the easier half goes
        (1_999, 0.001, 1_999),
        (800, 0.25, 800),  # would be one batch all the same
        (1, 0.5, 1),
    ],
)
def test_how_many_stay_in_batches_of_a_thousand(n: int, part: float, kept: int) -> None:
    draws = np.random.default_rng(0)
    assert len(without_easy(np.arange(n), draws.random(n), part, 1_000, draws)) == kept


def stream(skips: tuple[float, ...], losses: list[float], **changes: Any) -> BatchStream:
    """Of sixteen pictures of 4 x 4 pixels, each filled with its own number, in batches of four."""
    images = torch.arange(16, dtype=torch.uint8)[:, None, None, None].expand(16, 4, 4, 3).contiguous()
    known = torch.tensor(losses)
    given = BatchStream(
        images=images,
        labels=torch.arange(16),
        batch_size=4,
        seed=0,
        augmentation=Augment(),
        preparation=Preparation.from_training_images("scale", images.numpy(), "squash"),
        skips=skips,
        difficulty=Difficulty(known.clone(), known.clone()),
    )
    return replace(given, **changes)


def labels_of(batches: BatchStream, count: int) -> list[list[int]]:
    return [labels.tolist() for _, labels in islice(batches.from_step(0), count)]


def test_a_pass_leaves_out_easy_pictures_and_the_next_one_follows_at_once() -> None:
    batches = labels_of(stream((0.25,), [0.1] * 8 + [2.0] * 8), 6)
    first, second = (
        {label for batch in one_pass for label in batch} for one_pass in (batches[:3], batches[3:])
    )
    for seen in (first, second):
        assert len(seen) == 12 and set(range(8, 16)) <= seen
    assert first != second  # drawn anew


def test_a_pass_goes_by_the_losses_that_were_known_when_it_began() -> None:
    batches = stream((0.5,), [0.1] * 8 + [2.0] * 8)
    assert batches.difficulty is not None
    seen = []
    for _, labels in islice(batches.from_step(0), 4):
        seen.append(set(labels.tolist()))
        batches.difficulty.note(torch.zeros(len(labels)))
    assert (seen[0] | seen[1], seen[2] | seen[3]) == (set(range(8, 16)), set(range(8)))


def test_a_pass_is_as_long_as_the_step_says_that_it_begins_with() -> None:
    """Passes of 4, 2, 2, 2, 2 and 4 batches: those that begin in steps 4 to 11 leave out a half."""
    labels = labels_of(stream((0.0, 0.5, 0.5, 0.0), [0.1] * 8 + [2.0] * 8), 18)
    ends: list[int] = []
    seen: set[int] = set()
    for step, batch in enumerate(labels):
        if seen & set(batch):
            ends.append(step)
            seen = set()
        seen |= set(batch)
    assert ends == [4, 6, 8, 10, 12, 16]


def test_sizes_go_by_steps_while_passes_are_shorter() -> None:
    sizes = (Size(), Size(0.5), Size(crop=0.5), Size())
    batches = stream((0.0, 0.5, 0.5, 0.0), [0.1] * 8 + [2.0] * 8, sizes=sizes)
    found = [images.shape[-1] for images, _ in islice(batches.from_step(0), 14)]
    assert found == [4] * 4 + [2] * 8 + [4] * 2


def test_of_changed_copies_the_mean_loss_counts() -> None:
    batches = stream((0.5,), [0.0] * 16, augmentation=Augment(flip=0.5, copies=2), batch_size=2)
    assert batches.difficulty is not None
    _, labels = next(batches.from_step(0))
    assert labels[0] == labels[1] and labels[2] == labels[3]
    batches.difficulty.note(torch.tensor([1.0, 3.0, 5.0, 9.0]))
    assert batches.difficulty.losses[labels[::2]].tolist() == [2.0, 7.0]


def test_alternating_flips_turn_in_every_pass() -> None:
    pictures = torch.arange(16 * 4 * 4 * 3, dtype=torch.uint8).view(16, 4, 4, 3)
    augmentation = Augment(flip=0.5, flip_rule="alternating")
    batches = stream((0.5, 0.5), [0.1] * 8 + [2.0] * 8, images=pictures, augmentation=augmentation)
    seen: dict[int, torch.Tensor] = {}
    for images, labels in islice(batches.from_step(0), 4):
        for image, label in zip(images, labels.tolist(), strict=True):
            if label in seen:
                assert torch.equal(image, seen[label].flip(-1))
            seen[label] = image
    assert len(seen) == 8


def test_with_nothing_left_out_the_batches_are_those_without_it() -> None:
    batches = stream((0.0,), [0.0] * 16)
    assert labels_of(batches, 9) == labels_of(replace(batches, difficulty=None), 9)


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("steps", [1, 7, 8, 11, 12, 13, 18, 20, 26])
def test_it_resumes_exactly(tmp_path: Path, steps: int) -> None:
    recipe = override(RECIPE, SKIPS)
    job = training.prepare(recipe, "demo")
    run = training.start(job, tmp_path / "stopped")
    with pytest.raises(Interrupted):
        list(training.fit(job, run, StopAfter(steps)))
    assert exact(run_in(run.path, recipe)) == exact(run_in(tmp_path / "whole", recipe))


@pytest.mark.usefixtures("_tiny")
def test_it_resumes_exactly_beyond_its_planned_end(tmp_path: Path) -> None:
    recipe = override(RECIPE, SKIPS)
    run_in(tmp_path / "extended", override(recipe, {"epochs": 2}))
    list(training.fit(*training.reopen(tmp_path / "extended", epochs=4)))
    assert exact(Run(tmp_path / "extended")) == exact(run_in(tmp_path / "planned", recipe))


@pytest.mark.usefixtures("_tiny")
def test_it_goes_by_the_losses_that_are_trained_on() -> None:
    # Without what PyTorch's batch norm loses in channels_last where it has no AVX-512
    settings = {**SKIPS, "loss.label_smoothing": 0.2, "model.batch_norm": False}
    job = training.prepare(override(RECIPE, settings), "demo")
    difficulty = job.stream.difficulty
    assert difficulty is not None
    images, labels = next(job.stream.from_step(0))
    torch.manual_seed(derived_seed(0, DROPOUT, 0))
    expected = torch.nn.functional.cross_entropy(copy.deepcopy(job.model)(images), labels, reduction="none")
    training.train_step(job, images, labels, 0, 0.1)
    assert difficulty.batch is not None
    assert torch.equal(job.stream.labels[difficulty.batch], labels)
    torch.testing.assert_close(difficulty.losses[difficulty.batch], expected.detach())
    assert int(torch.isinf(difficulty.losses).sum()) == job.n_train - len(labels)


@pytest.mark.usefixtures("_tiny")
def test_it_changes_what_is_trained_on_and_no_number_of_steps(tmp_path: Path) -> None:
    plain, skipping = (
        run_in(tmp_path / name, override(RECIPE, {**SKIPS, **settings}))
        for name, settings in (("plain", {"data.training_skips": []}), ("skipping", {}))
    )
    rows, others = plain.metrics, skipping.metrics
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    assert rows[0]["train_loss"] == others[0]["train_loss"]
    assert rows[2]["train_loss"] != others[2]["train_loss"]


@pytest.mark.usefixtures("_tiny")
def test_an_estimate_leaves_no_trace_in_what_is_known() -> None:
    job = training.prepare(override(RECIPE, SKIPS), "demo")
    estimate(job)
    range_test(job, steps=20)
    assert job.stream.difficulty is not None
    assert torch.isinf(job.stream.difficulty.losses).all() and job.stream.difficulty.batch is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data.training_skips": [0.6]}, r"data\.training_skips"),
        ({"data.training_skips": 0.2}, r"data\.training_skips"),
        ({"data.training_skips": ["a lot"]}, r"data\.training_skips"),
        (
            {"data.training_skips": [0.2], "data.sampling": "balanced"},
            r"give data.training_skips=\[\] with it",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_left_out_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        override(RECIPE, settings)

"""Passes over the data that leave out easy pictures (`data.training_skips`)."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarlab import Interrupted, UserError, training
from cifarlab.cost import estimate
from cifarlab.data.difficulty import Difficulty, without_easy
from cifarlab.data.loader import BatchStream
from cifarlab.preparation import Preparation
from cifarlab.recipe import Augment, override
from tests.test_resume import StopAfter, exact, run_in
from tests.tiny import RECIPE, tiny_source, use_source

SKIPS = {"data.training_skips": [0.0, 0.4, 0.3], "epochs": 4}


@given(st.integers(1, 200), st.floats(0, 0.5), st.integers(1, 40), st.integers(0, 99))
def test_what_is_left_out_is_of_the_easier_half(n: int, part: float, batch_size: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    pictures, losses = draws.permutation(n), draws.random(n)
    kept = without_easy(pictures, losses, part, batch_size, draws)
    assert [each for each in pictures if each in set(kept)] == kept.tolist()  # in their order, none twice
    asked = round((1 - part) * n)
    assert len(kept) == (asked // batch_size * batch_size if asked >= batch_size else asked)
    left_out = np.setdiff1d(pictures, kept)
    easier = np.sort(losses)[: max(n // 2, len(left_out))]
    assert np.isin(losses[left_out], easier).all()


def stream(skips: tuple[float, ...], losses: list[float]) -> BatchStream:
    """Of sixteen pictures of 2 x 2 pixels, each filled with its own number, in batches of four."""
    images = torch.arange(16, dtype=torch.uint8)[:, None, None, None].expand(16, 2, 2, 3).contiguous()
    known = torch.tensor(losses)
    return BatchStream(
        images=images,
        labels=torch.arange(16),
        batch_size=4,
        seed=0,
        augmentation=Augment(),
        preparation=Preparation.from_training_images("scale", images.numpy(), "squash"),
        skips=skips,
        difficulty=Difficulty(known.clone(), known.clone()),
    )


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
    assert job.stream.difficulty is not None
    assert torch.isinf(job.stream.difficulty.losses).all() and job.stream.difficulty.batch is None


def test_more_than_the_easier_half_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.training_skips"):
        override(RECIPE, {"data.training_skips": [0.6]})

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import beta
from sklearn.calibration import calibration_curve

from cifarlab import UserError, load_predictor
from cifarlab.calibration import (
    ALARMS_SURE_ENOUGH,
    calibrate,
    fit_temperature,
    measure_calibration,
    temperature_standard_error,
)
from cifarlab.cli import main
from cifarlab.data import open_source
from cifarlab.evaluation import evaluate, load_answers
from cifarlab.familiarity import score, threshold_at
from cifarlab.run import Run


def drawn(seed: int, n: int, classes: int = 4, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose probabilities are true, times `scale`: above 1 they are too sure of themselves."""
    draws = np.random.default_rng(seed)
    logits = 2 * draws.standard_normal((n, classes))
    labels = np.array([draws.choice(classes, p=row) for row in softmax(logits, axis=1)])
    return scale * logits, labels


def test_the_bins_are_those_of_scikit_learn() -> None:
    logits, labels = drawn(0, 2_000)
    found = measure_calibration(logits, labels, bins=10)
    probabilities = softmax(logits, axis=1)
    right = probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=10)
    filled = [each for each in found.bins if each.n]
    assert [each.accuracy for each in filled] == pytest.approx(accuracy)
    assert [each.confidence for each in filled] == pytest.approx(confidence)
    assert sum(each.n for each in found.bins) == 2_000


def test_the_error_by_hand() -> None:
    """Two pictures at 0.9, one of them right, and two at 0.6, both right: (2 * 0.4 + 2 * 0.4) / 4."""
    sure, unsure = np.log([0.9, 0.1]), np.log([0.6, 0.4])
    found = measure_calibration(np.array([sure, sure, unsure, unsure]), np.array([0, 1, 0, 0]))
    assert found.expected_error == pytest.approx(0.4)
    assert found.loss == pytest.approx(-np.log([0.9, 0.1, 0.6, 0.6]).mean())


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_logits_too_large(scale: float) -> None:
    logits, labels = drawn(1, 20_000, scale=scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    before, after = measure_calibration(logits, labels), measure_calibration(logits, labels, temperature)
    assert after.expected_error < 0.02
    assert after.loss <= before.loss
    if scale == 3.0:
        assert before.expected_error > 0.1


@given(st.integers(0, 1_000), st.integers(1, 60), st.integers(2, 12), st.floats(0.1, 30))
def test_the_error_is_a_share_whatever_the_logits(seed: int, n: int, classes: int, scale: float) -> None:
    logits, labels = drawn(seed, n, classes, scale)
    found = measure_calibration(logits, labels)
    assert 0.0 <= found.expected_error <= 1.0
    assert sum(each.n for each in found.bins) == n
    assert 0.05 <= (fit_temperature(logits, labels) or 1.0) <= 20.0


def test_the_standard_error_is_the_spread_of_temperatures() -> None:
    drawings = [drawn(seed, 300, scale=2.0) for seed in range(200)]
    fitted = [fit_temperature(*drawing) for drawing in drawings]
    told = [
        temperature_standard_error(logits, temperature or 1.0)
        for (logits, _), temperature in zip(drawings, fitted, strict=True)
    ]
    assert np.std(np.array(fitted, float)) == pytest.approx(np.mean(told), rel=0.15)


def test_the_rate_of_false_alarms_is_fixed_to_a_factor_of_two() -> None:
    """The share of all pictures that lie below the k-th lowest of n: David and Nagaraja, Order Statistics, 2.1."""
    for rate in (0.02, 0.1):
        n = round(ALARMS_SURE_ENOUGH / rate)
        below = beta(ALARMS_SURE_ENOUGH, n - ALARMS_SURE_ENOUGH + 1)
        assert below.cdf(2 * rate) - below.cdf(rate / 2) > 0.95
        too_few = beta(ALARMS_SURE_ENOUGH // 2, n // 2 - ALARMS_SURE_ENOUGH // 2 + 1)
        assert too_few.cdf(2 * rate) - too_few.cdf(rate / 2) < 0.95


def test_answers_that_are_all_right_or_worthless_have_no_temperature() -> None:
    logits = np.eye(4)[[0, 1, 2, 3, 0]] * 3.0
    assert fit_temperature(logits, np.array([0, 1, 2, 3, 0])) is None
    assert fit_temperature(logits, np.array([1, 2, 3, 0, 1])) is None


def few(run: Run, n: int, *, right: bool = False) -> Run:
    """The run with `n` validation pictures that are judged already."""
    logits, labels = drawn(3, n, classes=10)
    if right:
        labels = logits.argmax(1)
    tensors = {"logits-best": torch.tensor(logits).float(), "labels": torch.tensor(labels)}
    checksums = {"best": run.weights_checksum("best")}
    run.write_logits("validation", tensors, {"weights_sha256": checksums, "data": run.data["checksum"]})
    return run


@pytest.mark.parametrize(
    ("n", "right", "problems"),
    [
        (
            12,
            True,
            ["no temperature can be found from 12 validation pictures", "too few for a threshold with 2.0 %"],
        ),
        (
            60,
            False,
            [r"the temperature is .* from 60 .*: about \d+ would", "60 .*: few for .*; 500 fix that rate"],
        ),
        (3_000, False, []),
    ],
)
def test_too_few_pictures_are_told(
    run: Run, capsys: pytest.CaptureFixture[str], n: int, right: bool, problems: list[str]
) -> None:
    few(run, n, right=right)
    picture = str(run.path / "figures" / "learning-curves.png")
    plain = load_predictor(run).predict(picture)
    assert main(["calibrate", str(run.path)]) == 0
    captured = capsys.readouterr()
    told = captured.err.splitlines()
    assert len(told) == len(problems)
    assert all(re.search(problem, line) for problem, line in zip(problems, told, strict=True))
    found = run.calibration
    assert found is not None and found["n"] == n
    assert (found["temperature"] is None, found["threshold"] is None) == (right, n < 50)
    prediction = load_predictor(run).predict(picture)
    assert (prediction[0].unlike_training is None) == (n < 50)
    assert (prediction[0].predictions == plain[0].predictions) == right


def test_a_probability_of_one_has_its_bin() -> None:
    found = measure_calibration(np.array([[1e4, 0.0]]), np.array([0]))
    assert found.bins[-1].n == 1 and found.expected_error == 0.0


@pytest.fixture
def run(demo_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(demo_run.path, tmp_path / "run")
    return Run(tmp_path / "run")


def with_labels_it_could_have_known(run: Run) -> None:
    """Its answers to validation pictures, stored with labels drawn by its own probabilities at a temperature of 3."""
    evaluate(run, split="validation")
    stored = run.load_logits("validation")
    assert stored is not None
    tensors, header = stored
    draws = np.random.default_rng(0)
    probabilities = softmax(tensors["logits-best"].numpy().astype(float) / 3, axis=1)
    labels = [draws.choice(len(row), p=row) for row in probabilities]
    run.write_logits("validation", {**tensors, "labels": torch.tensor(labels)}, header)


def test_a_calibrated_run_predicts_with_its_temperature_and_warns_at_its_rate(run: Run) -> None:
    before = load_predictor(run)
    with_labels_it_could_have_known(run)
    found = calibrate(run, false_alarms=0.1)
    assert found["temperature"] == pytest.approx(3.0, rel=0.1)
    assert found == run.calibration == json.loads((run.path / "calibration.json").read_text())
    logits, labels = (tensor.numpy() for tensor in load_answers(run, "validation", "best"))
    assert found["temperature"] == fit_temperature(logits, labels)
    assert (found["n"], found["weights"], found["false_alarms"]) == (4400, "best", 0.1)
    images = open_source("demo").load("train").images[run.data["validation_indices"][:200]]
    plain, tempered = before.predict(images, top=10), load_predictor(run).predict(images, top=10)
    for old, new, row in zip(plain, tempered, logits[:200].astype(float), strict=True):
        assert [r.index for r in new.predictions] == [r.index for r in old.predictions]
        expected = np.sort(softmax(row / found["temperature"]))[::-1]
        assert [r.probability for r in new.predictions] == pytest.approx(expected, abs=1e-4)
        assert old.unlike_training is None
    unlike = score(logits, "energy") < found["threshold"]
    assert unlike.mean() == pytest.approx(0.1, abs=0.001)
    assert [each.unlike_training for each in tempered] == unlike[:200].tolist()


def test_mirror_images_have_their_say_where_they_were_looked_at(run: Run) -> None:
    few(run, 3_000)
    alone = calibrate(run)
    tensors, header = run.load_logits("validation") or ({}, {})
    plain = tensors["logits-best"]
    views = torch.stack(
        [2 * plain, *[100 * plain] * 4]
    )  # mirrored: twice as sure; moved: not to be listened to
    run.write_logits("validation", {**tensors, "views-best": views}, header)
    run.replan(run.recipe.model_copy(update={"test_time_views": "mirror-shift"}))
    found = calibrate(run)
    labels = tensors["labels"].numpy()
    both = np.concatenate([plain.numpy(), 2 * plain.numpy()])
    assert found["temperature"] == fit_temperature(both, np.tile(labels, 2))
    assert alone["temperature"] < found["temperature"] < 2 * alone["temperature"]
    assert (found["n"], found["threshold"]) == (3_000, alone["threshold"])


def test_the_commands_say_what_is_unlike_the_training_pictures(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["calibrate", str(run.path), "--json", "--false-alarms", "0.05"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["expected_calibration_error"]) == {"before", "after"} and found["rule"] == "energy"
    run.set_calibration({**found, "threshold": 1e9})  # every picture is strange to it
    picture = run.path / "figures" / "learning-curves.png"
    assert main(["predict", str(run.path), str(picture), "--csv", str(tmp_path / "found.csv")]) == 0
    captured = capsys.readouterr()
    assert "unlike the training pictures: its class is a guess" in captured.out
    assert (
        "1 of 1 picture unlike the training pictures; so are about 5 % of pictures like them" in captured.err
    )
    header, first, *_ = (tmp_path / "found.csv").read_text().splitlines()
    assert header == "path,rank,class,probability,error,note"
    assert first.endswith(",,unlike the training pictures")
    assert main(["predict", str(run.path), str(picture), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["unlike_training"] is True


def test_a_calibration_of_other_weights_is_not_used(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(run)
    tensors, header = run.load_weights("best")
    run.publish([{**run.metrics[0], "epoch": 1}], tensors, header | {"step": 7})
    assert load_predictor(run).calibration is None
    assert main(["predict", str(run.path), str(run.path / "figures" / "learning-curves.png")]) == 0
    assert "was calibrated with other weights" in capsys.readouterr().err


@pytest.mark.parametrize("validation", ["none", "test"])
def test_nothing_is_fitted_on_pictures_that_were_trained_on_or_are_judged(run: Run, validation: str) -> None:
    data = run.recipe.data.model_copy(update={"validation": validation})
    run.replan(run.recipe.model_copy(update={"data": data}))
    with pytest.raises(UserError, match=f"no validation pictures to calibrate on.*{validation}"):
        calibrate(run)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_of_false_alarms_is_a_share(run: Run, rate: float) -> None:
    with pytest.raises(UserError, match="above 0 and below 1"):
        calibrate(run, false_alarms=rate)


def test_scores_by_hand() -> None:
    logits = np.log([[1.0, 2.0, 5.0], [0.1, 0.1, 0.2]])
    assert score(logits, "energy") == pytest.approx(np.log([8.0, 0.4]))
    assert score(logits, "max-logit") == pytest.approx(np.log([5.0, 0.2]))
    assert threshold_at(np.arange(101.0), 0.02) == 2.0

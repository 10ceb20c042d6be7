"""Classes of very different sizes: weights in the loss, balanced sampling, and figures averaged over classes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

from cifarlab.cli import main
from cifarlab.data import Source, Split
from cifarlab.data.sources import StoredSplit
from cifarlab.errors import UserError
from cifarlab.evaluation import evaluate, load_answers
from cifarlab.job import prepare
from cifarlab.leaderboard import leaderboard
from cifarlab.macro import macro_mean, uneven
from cifarlab.recipe import override
from cifarlab.run import Run
from cifarlab.training import fit, start, train_step
from tests.tiny import RECIPE, tiny_source

PLAIN = override(
    RECIPE,
    {"model.pool_dropout": [0, 0], "model.dense_dropout": 0, "augment.shift": 0, "augment.rotation": 0}
    | {"augment.flip": 0, "ema.decay": None, "epochs": 1},
)


@pytest.fixture(scope="module")
def source() -> Source:
    """The demo's first 300 pictures, of classes 1 to 4 a tenth only, in which they are uneven."""
    whole = tiny_source()

    def read(split: StoredSplit) -> Split:
        content = whole.load(split)
        kept = (content.labels % 5 == 0) | (np.arange(len(content.labels)) % 3 == 0)
        return Split(content.images[kept], content.labels[kept])

    return dataclasses.replace(whole, read=read)


@pytest.fixture(scope="module")
def run(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Run:
    job = prepare(override(PLAIN, {"loss.class_weights": "balanced", "data.sampling": "balanced"}), source)
    run = start(job, tmp_path_factory.mktemp("uneven") / "run")
    list(fit(job, run))
    return run


@pytest.fixture(scope="module", autouse=True)
def demo_is_uneven(source: Source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cifarlab.evaluation.reopen_source", lambda *_, **__: source)
        yield


def test_balanced_weights_are_those_of_scikit_learn(source: Source) -> None:
    job = prepare(override(PLAIN, {"loss.class_weights": "balanced"}), source)
    labels = job.stream.labels.numpy()
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    np.testing.assert_allclose(job.class_weights, expected, rtol=1e-6)
    assert job.class_weights is not None
    assert job.class_weights[labels].mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_pictures_loss_counts_as_its_class_does(source: Source, smoothing: float) -> None:
    settings = {"loss.class_weights": [float(k + 1) for k in range(10)], "loss.label_smoothing": smoothing}
    weighted = prepare(override(PLAIN, settings), source)
    alike = prepare(override(PLAIN, {"loss.label_smoothing": smoothing}), source)
    images, labels = next(weighted.stream.from_step(0))
    each = []
    for image, label in zip(images, labels, strict=True):
        alike.model.load_state_dict(weighted.model.state_dict())
        alike.model.eval()  # batch norm as it stands: one picture has no statistics
        each.append(train_step(alike, image[None], label[None], 0, 0.0)[0])
    weighted.model.eval()
    loss, _ = train_step(weighted, images, labels, 0, 0.0)
    expected = (torch.stack(each) * (labels + 1)).mean()
    torch.testing.assert_close(loss, expected)


def test_weights_that_do_not_fit_the_classes_are_refused(source: Source) -> None:
    with pytest.raises(UserError, match="loss.class_weights has 2 weights, and the data has 10 classes"):
        prepare(override(PLAIN, {"loss.class_weights": [1, 2]}), source)
    with pytest.raises(UserError, match=r"loss.class_weights.* greater than 0"):
        override(PLAIN, {"loss.class_weights": [1, 0]})
    with pytest.raises(UserError, match="should be none, balanced or a list of numbers, 'even' given"):
        override(PLAIN, {"loss.class_weights": "even"})
    with pytest.raises(UserError, match="augment.copies needs a change that makes them differ"):
        override(PLAIN, {"augment.copies": 2})


def test_macro_averages_are_those_of_scikit_learn(run: Run) -> None:
    result = evaluate(run)
    logits, labels = load_answers(run, "test", result.weights)
    predicted = logits.argmax(1)
    assert result.macro_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert result.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    assert result.is_uneven
    recorded = run.evaluations["test"][result.weights]
    assert recorded["macro_accuracy"] == result.macro_accuracy and recorded["macro_f1"] == result.macro_f1


def test_screens_and_json_show_macro_averages(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(run)
    macro, f1 = (f"{100 * value:.2f} %" for value in (result.macro_accuracy, result.macro_f1))
    assert main(["evaluate", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert f"macro     {macro}" in shown and f"macro F1  {f1}" in shown
    assert main(["leaderboard", str(run.path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"classes uneven, macro {macro}, F1 {f1}" in shown
    assert main(["leaderboard", str(run.path), "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)[0]
    assert entry["test_macro_accuracy"]["mean"] == pytest.approx(result.macro_accuracy)
    assert entry["test_macro_f1"]["mean"] == pytest.approx(result.macro_f1)
    assert leaderboard([run.path])[0].is_uneven


def test_even_classes_show_no_macro_averages(demo_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        from cifarlab.data.sources import reopen_source

        patch.setattr("cifarlab.evaluation.reopen_source", reopen_source)
        assert main(["evaluate", str(demo_run.path), "--split", "validation"]) == 0
    assert "macro" not in capsys.readouterr().out


def test_the_report_says_what_uneven_classes_hide(run: Run) -> None:
    from cifarlab.report.facts import result
    from cifarlab.report.judged import judge
    from cifarlab.report.several import run_columns

    judged = judge([run], "test", None, None)[0]
    evaluation = judged.evaluation
    (note,) = [note for note in result(judged).notes if "uneven" in note]
    assert f"{100 * evaluation.macro_accuracy:.2f} %" in note and f"{100 * evaluation.macro_f1:.2f} %" in note
    assert run_columns([judged])[0].cells["Macro accuracy"] == f"{100 * evaluation.macro_accuracy:.2f} %"


def test_what_counts_as_uneven() -> None:
    assert not uneven([10, 15, 12]) and uneven([10, 16, 12]) and uneven([0, 1])
    assert macro_mean([(0.5, 3), (1.0, 1), (0.0, 0)]) == 0.75 and macro_mean([(0.0, 0)]) == 0.0

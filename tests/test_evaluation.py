import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cifarlab import UserError, evaluate, evaluation, resume, train, tta
from cifarlab.data import open_source
from cifarlab.run import Run
from cifarlab.training import fit, reopen
from tests.conftest import SMALL


@pytest.fixture
def run(demo_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(demo_run.path, tmp_path / "copy")
    return Run(tmp_path / "copy")


def stored(run: Run) -> dict:
    return json.loads((run.path / "evaluation.json").read_text())


@pytest.mark.parametrize("command", ["evaluate", "report", "predict"])
def test_a_record_says_that_it_has_no_weights(
    command: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cifarlab.cli import main

    run.keep_record_only()
    (tmp_path / "picture.png").touch()
    arguments = [str(tmp_path / "picture.png")] if command == "predict" else []
    assert main([command, str(run.path), *arguments]) == 2
    assert f"error: {run.path} is a record: its figures are kept" in capsys.readouterr().err


def test_validation_figures_are_those_of_training(run: Run) -> None:
    last = run.metrics[-1]
    result = evaluate(run, split="validation", weights="last")
    assert result.n == 4400
    assert result.loss == pytest.approx(last["validation_loss"], abs=1e-5)
    assert result.accuracy == last["validation_accuracy"]


def test_every_figure_follows_from_the_stored_logits(run: Run) -> None:
    result = evaluate(run)
    tensors = load_file(run.path / "logits-test.safetensors")
    logits, labels = tensors["logits-best"].astype(float), tensors["labels"]
    assert (labels == open_source("demo").load("test").labels).all()
    predicted = logits.argmax(1)
    hits = np.array([((predicted == k) & (labels == k)).sum() for k in range(10)])
    shown = np.array([(predicted == k).sum() for k in range(10)])
    true = np.bincount(labels, minlength=10)
    assert result.accuracy == hits.sum() / len(labels)
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    assert result.loss == pytest.approx(losses.mean(), rel=1e-9)
    for k, each in enumerate(result.classes):
        assert (each.name, each.n) == (run.classes[k], true[k])
        assert each.precision == pytest.approx(hits[k] / shown[k] if shown[k] else 0.0)
        assert each.recall == pytest.approx(hits[k] / true[k])
        assert each.f1 == pytest.approx(2 * hits[k] / (shown[k] + true[k]))
        assert result.confusion[k][k] == hits[k]
        assert sum(result.confusion[k]) == true[k]
        assert sum(row[k] for row in result.confusion) == shown[k]


def test_written_by_split_and_weights(run: Run) -> None:
    results = [evaluate(run, split=s, weights=w) for s in ("test", "train") for w in ("best", "last")]
    content = stored(run)
    for result in results:
        assert content[result.split][result.weights] == json.loads(json.dumps(result.to_dict()))
        assert list(result.to_dict()) == [
            *("run", "split", "weights", "n", "loss", "accuracy", "macro_accuracy", "macro_f1"),
            *("tta", "accuracy_with_tta", "tta_views", "classes", "confusion"),
        ]
    assert [result.n for result in results] == [2000, 2000, 600, 600]
    tensors = load_file(run.path / "logits-train.safetensors")
    assert set(tensors) == {"logits-best", "logits-last", "labels"}


def test_the_test_set_is_opened_once_for_the_same_weights(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(run)
    uses = stored(run)["test_set_uses"]
    assert len(uses) == 1
    assert uses[0]["weights"] == "best"
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "reopen_source", lambda *_, **__: pytest.fail("the data was opened again"))
        again = evaluate(run)
    assert again == first
    assert (first.reused, again.reused) == (False, True)
    assert stored(run)["test_set_uses"] == uses
    evaluate(run, split="validation")
    assert stored(run)["test_set_uses"] == uses


def test_other_weights_open_the_test_set_again(run: Run) -> None:
    evaluate(run, weights="last")
    resume(run, epochs=3)
    again = evaluate(Run(run.path), weights="last")
    assert not again.reused
    uses = stored(run)["test_set_uses"]
    assert len(uses) == 2
    assert uses[0]["weights_sha256"] != uses[1]["weights_sha256"]


def test_logits_are_never_taken_for_those_of_weights_that_came_meanwhile(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training in the same run may publish other weights while the pictures are looked at."""
    before = run.weights_checksum("last")
    look = tta.predict_logits

    def look_while_training_goes_on(*arguments):
        logits = look(*arguments)
        tensors, header = run.load_weights("last")
        run.publish(run.metrics, tensors, header | {"step": header["step"] + 1})
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(tta, "predict_logits", look_while_training_goes_on)
        evaluate(run, weights="last")
    assert run.weights_checksum("last") != before
    assert stored(run)["test_set_uses"][0]["weights_sha256"] == before
    assert not evaluate(run, weights="last").reused


def test_pictures_of_the_test_set_are_not_opened_unrecorded(run: Run) -> None:
    evaluate(run)
    images = evaluation.open_pictures(run, "test", "best", command="report")
    assert (images == open_source("demo").load("test").images).all()
    uses = stored(run)["test_set_uses"]
    assert [use["command"] for use in uses] == ["evaluate", "report"]
    assert uses[1]["weights_sha256"] == run.weights_checksum("best")
    images = evaluation.open_pictures(run, "validation", "best", command="report")
    assert (images == open_source("demo").load("train").images[run.data["validation_indices"]]).all()
    assert stored(run)["test_set_uses"] == uses


def test_other_data_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.data, "checksum", "sha256:0")
    with pytest.raises(UserError, match="trained on other data: sha256:0"):
        evaluate(run)
    assert not (run.path / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "split should be test, validation or train, 'tset' given; did you mean 'test'"),
        ({"weights": "first"}, "weights should be best or last, 'first' given"),
    ],
)
def test_mistyped_choices(run: Run, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(run, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["weights-best.safetensors", "logits-test.safetensors", "data.json"])
def test_a_flipped_bit_is_found(run: Run, name: str) -> None:
    evaluate(run)
    content = bytearray((run.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run.path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        evaluate(Run(run.path))


def test_validation_on_the_test_set_counts_as_a_use_of_it(tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": 1, "data.validation": "test", "batch_size": 500}
    run = train("demo", data="demo", out=tmp_path / "run", overrides=settings)
    result = evaluate(run, split="validation")
    assert (result.n, result.weights, result.validation_was_test) == (2000, "last", True)
    assert result.accuracy == run.metrics[-1]["validation_accuracy"]
    assert [use["split"] for use in stored(run)["test_set_uses"]] == ["validation"]
    assert evaluate(run).reused
    with pytest.raises(UserError, match="keeps no best weights"):
        evaluate(run, weights="best")


def test_a_run_without_validation_has_no_validation_split(run: Run) -> None:
    recipe = json.loads((run.path / "recipe.json").read_text())
    recipe["data"]["validation"] = "none"
    text = json.dumps(recipe)
    (run.path / "recipe.json").write_text(text)
    (run.path / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="no validation split"):
        evaluate(Run(run.path), split="validation")


def test_logits_that_are_not_finite_give_no_loss(run: Run) -> None:
    evaluate(run)
    path = run.path / "logits-test.safetensors"
    tensors = load_file(path)
    header = run.load_logits("test")[1]  # type: ignore[index]
    tensors["logits-best"][0] = np.nan
    save_file(tensors, path, metadata={"cifarlab": json.dumps(header)})
    (run.path / "SHA256SUMS").unlink()
    assert evaluate(Run(run.path)).loss is None


def test_an_answer_from_stored_logits_leaves_the_record_as_it_was(
    demo_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_run.path, tmp_path / "run")
    first = evaluate(tmp_path / "run")
    before = (tmp_path / "run" / "evaluation.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    again = evaluate("run")
    assert again.reused and again.accuracy == first.accuracy
    assert (tmp_path / "run" / "evaluation.json").read_bytes() == before


def test_views_give_a_second_figure_beside_the_plain_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = evaluate(run, weights="last")
    assert (plain.tta, plain.accuracy_with_tta, plain.tta_views) == (False, None, 1)
    with_views(run)
    first = evaluate(Run(run.path), weights="last")
    assert not first.reused, "the other views were not looked at before"
    assert (first.tta, first.tta_views) == (True, 6)
    assert (first.accuracy, first.loss, first.confusion) == (plain.accuracy, plain.loss, plain.confusion)
    tensors = load_file(run.path / "logits-test.safetensors")
    views = np.concatenate([tensors["logits-last"][None], tensors["views-last"]])
    mean = np.average(views, axis=0, weights=[0.25, 0.25, 0.125, 0.125, 0.125, 0.125])
    assert first.accuracy_with_tta == (mean.argmax(1) == tensors["labels"]).mean()
    assert stored(run)["test"]["last"]["accuracy_with_tta"] == first.accuracy_with_tta
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "reopen_source", lambda *_, **__: pytest.fail("the data was opened again"))
        again = evaluate(Run(run.path), weights="last")
        assert again == first and again.reused
        with_views(run, "mirror")
        mirrored = evaluate(Run(run.path), weights="last")
    assert mirrored.tta_views == 2
    assert mirrored.accuracy_with_tta == (views[:2].mean(0).argmax(1) == tensors["labels"]).mean()


def test_views_of_weights_that_are_gone_are_forgotten(run: Run) -> None:
    with_views(run)
    evaluate(Run(run.path), weights="last")
    with_views(run, "none")
    tensors, header = run.load_weights("last")
    run.publish(run.metrics, tensors, header | {"step": header["step"] + 1})
    evaluate(Run(run.path), weights="last")
    assert "views-last" not in load_file(run.path / "logits-test.safetensors")


def test_views_are_no_part_of_the_training(run: Run) -> None:
    job, opened = reopen(run.path, overrides={"test_time_views": "mirror"})
    assert job.recipe.test_time_views == "mirror"
    list(fit(job, opened))
    assert Run(run.path).recipe.test_time_views == "mirror"
    assert evaluate(run.path, split="validation").tta_views == 2


def with_views(run: Run, rule: str = "mirror-shift") -> None:
    run.replan(run.recipe.model_copy(update={"test_time_views": rule}))


def test_a_use_of_the_test_set_is_recorded_before_it_is_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "_pictures", cut_off)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run)
    (use,) = stored(run)["test_set_uses"]
    assert (use["command"], use["weights_sha256"]) == ("evaluate", run.weights_checksum("best"))
    assert "test" not in stored(run)


def test_a_folder_of_seeds_is_judged_at_once(
    demo_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cifarlab.cli import main

    for name in ("seed-0", "seed-1"):
        shutil.copytree(demo_run.path, tmp_path / "group" / name)
    assert main(["evaluate", str(tmp_path / "group"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    accuracy = evaluate(tmp_path / "group" / "seed-0").accuracy
    assert [each["accuracy"] for each in content["runs"]] == [accuracy, accuracy]
    assert content["groups"][0] | {"name": ""} == {
        "name": "", "n": 2, "mean": accuracy, "sd": 0.0, "interval": None
    }  # fmt: skip
    unfinished = tmp_path / "group" / "seed-1" / "metrics.jsonl"
    unfinished.write_text(unfinished.read_text().splitlines()[0] + "\n")
    (unfinished.parent / "SHA256SUMS").unlink()
    assert main(["evaluate", str(tmp_path / "group")]) == 0
    printed = capsys.readouterr()
    assert "left out: " in printed.err and "has finished 1 of 2 epochs" in printed.err
    assert f"test accuracy {100 * accuracy:.2f} % (n = 1)" in printed.out


def test_validation_indices_stand_on_one_line(run: Run) -> None:
    """And are read as before from runs that have a line for each."""
    content = (run.path / "data.json").read_text()
    indices = run.data["validation_indices"]
    assert len(content.splitlines()) < 60 and str(indices) in content
    (run.path / "data.json").write_text(json.dumps(run.data, indent=1))
    (run.path / "SHA256SUMS").unlink()
    assert Run(run.path).data["validation_indices"] == indices

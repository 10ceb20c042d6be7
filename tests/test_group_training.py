"""Groups: seeds and folds, kept and resumed; out-of-fold predictions."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cifarlab import Interrupted, Run, UserError, group_training, train_group
from cifarlab.cli import main
from cifarlab.cli import train as command
from cifarlab.out_of_fold import load_out_of_fold
from cifarlab.training import EpochDone
from tests.tiny import RECIPE, tiny_source, use_source

DEMO = (
    "train",
    "demo",
    "--data",
    "demo",
    "--epochs",
    1,
    "--set",
    "device.threads=1",
    "--set",
    "model.widths=[4,8]",
)


def use_tiny_data(patched: pytest.MonkeyPatch) -> None:
    use_source(patched, tiny_source)
    patched.setattr(command, "open_source", tiny_source)


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_data(monkeypatch)


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def stop_at(monkeypatch: pytest.MonkeyPatch, seed: int, epoch: int) -> None:
    """Ctrl-C as an epoch of a seed ends."""
    whole = group_training.fit

    def fit(job, run, *rest):
        for event in whole(job, run, *rest):
            yield event
            if isinstance(event, EpochDone) and (job.recipe.seed, event.row["epoch"]) == (seed, epoch):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(group_training, "fit", fit)


def bytes_of(runs: list[Run]) -> list[bytes]:
    return [run.weights_path("last").read_bytes() for run in runs]


def test_a_group_cut_off_and_called_again_is_the_group_that_was_not(tmp_path, monkeypatch):
    short = RECIPE.model_copy(update={"epochs": 2})
    whole = train_group(short, seeds=3, data="demo", out=tmp_path / "whole")
    assert [run.path.name for run in whole] == ["seed-0", "seed-1", "seed-2"]
    assert [run.recipe.seed for run in whole] == [0, 1, 2]
    cut = tmp_path / "cut"
    with monkeypatch.context() as patched:
        stop_at(patched, seed=1, epoch=1)
        with pytest.raises(Interrupted, match=r"stopped in seed-1, saved, 1 of 3 finished; the same command"):
            train_group(short, seeds=3, data="demo", out=cut)
    assert len(Run(cut / "seed-1").metrics) == 1 and not (cut / "seed-2").exists()
    before = (cut / "seed-0" / "state.json").stat().st_mtime_ns
    again = train_group(short, seeds=3, data="demo", out=cut)
    assert bytes_of(again) == bytes_of(whole)
    assert (cut / "seed-0" / "state.json").stat().st_mtime_ns == before
    assert len(set(bytes_of(whole))) == 3


def test_a_group_grows_and_refuses_other_recipes_and_data(tmp_path):
    fast = RECIPE.model_copy(update={"epochs": 1})
    train_group(fast, seeds=1, data="demo", out=tmp_path)
    assert len(train_group(fast, seeds=2, data="demo", out=tmp_path)) == 2
    with pytest.raises(UserError, match="seed-0 is of another recipe: batch_size is 32 there, 16 here"):
        train_group(fast, seeds=2, data="demo", out=tmp_path, overrides={"batch_size": 16})
    with pytest.raises(UserError, match="was trained on demo, and cifar10 is asked for"):
        train_group(fast, seeds=2, out=tmp_path)
    with pytest.raises(UserError, match="is a run: a group needs a folder"):
        train_group(fast, seeds=2, data="demo", out=tmp_path / "seed-0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]


def test_folds_do_not_begin_with_a_network_that_has_seen_what_they_hold_out(folds, tmp_path):
    base = {"finetune.init_from": str(folds[0].path)}
    with pytest.raises(
        UserError, match="--folds cannot begin with .* trained on demo, and with it on pictures"
    ):
        train_group(RECIPE, folds=2, data="demo", out=tmp_path, overrides=base)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of the two"),
        ({"seeds": 2, "folds": 2}, "give one of the two"),
        ({"seeds": 0}, "--seeds should be 1 or more, 0 given"),
        ({"folds": 1}, "--folds should be 2 or more, 1 given"),
        ({"folds": 2000}, "data.folds should be less than or equal to 1000"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        train_group(RECIPE, data="demo", out=tmp_path / "group", **arguments)
    assert not (tmp_path / "group").exists()


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Three folds of 300 pictures; made once."""
    with pytest.MonkeyPatch.context() as patched:
        use_tiny_data(patched)
        folder = tmp_path_factory.mktemp("group") / "folds"
        return train_group(RECIPE, folds=3, data="demo", out=folder, overrides={"epochs": 1})


def test_every_training_picture_is_answered_by_the_network_that_did_not_see_it(folds):
    train = tiny_source().load("train")
    kept = load_out_of_fold(folds[0].path.parent)
    assert kept.labels.tolist() == train.labels.tolist()
    assert kept.data == tiny_source().checksum and kept.classes == tiny_source().classes
    for number, run in enumerate(folds):
        held_out = run.data["validation_indices"]
        assert np.flatnonzero(kept.fold == number).tolist() == held_out
        model, prepare = run.load_model("last"), run.load_preparation("last")
        pictures = torch.from_numpy(train.images[held_out]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            logits = model(prepare(pictures))
        torch.testing.assert_close(kept.logits[held_out], logits)
        assert kept.accuracies[number] == pytest.approx(run.metrics[-1]["validation_accuracy"])
        assert not run.weights_path("best").exists()
    assert kept.accuracy == pytest.approx(
        np.average(kept.accuracies, weights=[run.data["n_validation"] for run in folds])
    )


def test_out_of_fold_predictions_are_checked_when_read(folds, tmp_path):
    with pytest.raises(UserError, match="has no out-of-fold.safetensors"):
        load_out_of_fold(tmp_path)
    content = load_file(folds[0].path.parent / "out-of-fold.safetensors")
    header = {"classes": ["a"], "data": "", "weights_sha256": {}, "sha256": "0" * 64}
    save_file(content, tmp_path / "out-of-fold.safetensors", {"cifarlab": json.dumps(header)})
    with pytest.raises(UserError, match="does not match its checksum"):
        load_out_of_fold(tmp_path)
    (tmp_path / "out-of-fold.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        load_out_of_fold(tmp_path)


def test_the_command_prints_the_cost_of_the_whole_first_and_the_mean_last(capsys, in_empty_folder):
    code, out, err = ask(capsys, *DEMO, "--seeds", 2)
    assert code == 0, err
    assert "2: runs/demo/seed-0 to seed-1" in out and "in all: done at" in out
    assert (
        out.index("in all: done at")
        < out.index("seed-0, 1 of 2: begins")
        < out.index("validation accuracy  ")
    )
    accuracies = [
        Run(Path("runs/demo") / f"seed-{seed}").metrics[-1]["validation_accuracy"] for seed in (0, 1)
    ]
    assert (
        f"validation accuracy  {100 * np.mean(accuracies):.2f} % ± {100 * np.std(accuracies, ddof=1):.2f} (n = 2)"
        in out
    )
    code, out, err = ask(capsys, *DEMO, "--seeds", 2, "--plan", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["group"], plan["runs"], plan["runs_left"], plan["elapsed_seconds"]) == (
        "runs/demo",
        2,
        0,
        0.0,
    )
    code, out, err = ask(capsys, *DEMO, "--seeds", 2, "--json")
    document = json.loads(out)
    assert document["validation_accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert "seed-1, 2 of 2: finished, kept" in err
    assert ask(capsys, *DEMO, "--seeds", 2, "--seed", 1)[2].startswith(
        "error: --seed 1 and --seeds 2: give one"
    )


def test_the_command_for_folds_says_that_folds_share_pictures(capsys, in_empty_folder):
    code, out, err = ask(capsys, *DEMO, "--folds", 2)
    assert code == 0, err
    assert "held-out fold accuracy  " in out and "folds share most of their training pictures" in out
    assert load_out_of_fold("runs/demo-2-folds").logits.shape == (300, 10)

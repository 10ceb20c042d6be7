"""Is A better than B? On runs whose answers are made up, through the public function and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cifarlab import UserError, compare
from cifarlab.cli import main
from cifarlab.comparison import Comparison, Pair
from cifarlab.figures import BLUE, ORANGE, Interval, intervals
from cifarlab.run import Run
from cifarlab.statistics import difference, fold_inflation
from tests.judged import PICTURES, group_at, judged_run, unjudged_run

LOW, HIGH = [0.700, 0.712, 0.704, 0.708], [0.752, 0.770, 0.756, 0.766]


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def only_pair(result: Comparison) -> Pair:
    (pair,) = result.pairs
    return pair


def two_groups(tmp_path: Path, a: list[float], b: list[float]) -> Pair:
    group_at(tmp_path / "a", a)
    group_at(tmp_path / "b", b, batch_size=32)
    return only_pair(compare([tmp_path / "a", tmp_path / "b"]))


def test_shared_seeds_are_pairs_and_the_better_one_is_named_with_its_interval(tmp_path):
    pair = two_groups(tmp_path, LOW, HIGH)
    expected = difference(LOW, HIGH, paired=True)
    assert (pair.difference.paired, pair.verdict) == (True, "b is better")
    assert pair.difference.mean == pytest.approx(expected.mean)
    assert (pair.difference.low, pair.difference.p) == (
        pytest.approx(expected.low),
        pytest.approx(expected.p),
    )
    assert pair.adjusted_p == pair.difference.p
    assert pair.sentence == (
        "Over 4 seeds each on 500 test pictures of demo, demo (batch_size=32) is 5.50 points better than demo"
        " (batch_size=64) (95 % interval 4.95 to 6.05, paired t test, p < 0.0001)."
    )


def test_the_order_of_groups_turns_the_sign_and_not_the_verdict(tmp_path):
    pair = two_groups(tmp_path, HIGH, LOW)
    assert pair.difference.mean == pytest.approx(-0.055) and pair.verdict == "a is better"
    assert "demo (batch_size=64) is 5.50 points better than demo (batch_size=32)" in pair.sentence


def test_seeds_that_are_not_all_shared_are_two_samples(tmp_path):
    pair = two_groups(tmp_path, LOW, HIGH[:3])
    expected = difference(LOW, HIGH[:3], paired=False)
    assert not pair.difference.paired and "Welch t test" in pair.sentence
    assert pair.difference.low == pytest.approx(expected.low)
    assert len(pair.mcnemar) == 3


def test_no_winner_where_the_interval_holds_no_difference(tmp_path):
    pair = two_groups(tmp_path, [0.70, 0.72, 0.71], [0.716, 0.71, 0.72])
    assert pair.verdict == "no difference shown"
    assert pair.sentence.startswith("No difference is shown over 3 seeds each")
    assert pair.smallest_difference == pytest.approx(0.0444, abs=1e-4)
    assert "3 seeds each could have shown 4.44 points or more" in pair.sentence


def test_with_one_seed_each_it_says_what_would_be_needed(tmp_path):
    pair = two_groups(tmp_path, [0.70], [0.71])
    assert (pair.verdict, pair.difference.low, pair.difference.p, pair.adjusted_p) == (
        "not tested",
        None,
        None,
        None,
    )
    assert (pair.needed.each, pair.needed.sd, pair.needed.assumed) == (6, 0.005, True)
    assert (
        "takes about 6 seeds each, 5 more, with an assumed deviation between seeds of 0.50 points"
        in pair.sentence
    )
    wider = only_pair(compare([tmp_path], assumed_sd=0.02))
    assert wider.needed.each == 64


def test_two_seeds_have_an_interval_and_make_no_claim(tmp_path):
    pair = two_groups(tmp_path, [0.70, 0.702], [0.80, 0.804])
    assert pair.difference.p < 0.05 and pair.verdict == "not tested"
    assert pair.needed.assumed is False and pair.needed.each >= 2
    assert "about 3 seeds each, 1 more" in pair.sentence


def test_many_pairs_are_corrected(tmp_path):
    for number in range(4):
        group_at(tmp_path / str(number), [0.70, 0.71, 0.72 + 0.004 * number], batch_size=16 + number)
    result = compare([tmp_path])
    assert len(result.pairs) == 6
    smallest = min(result.pairs, key=lambda pair: pair.difference.p)
    assert smallest.adjusted_p == pytest.approx(min(1.0, 6 * smallest.difference.p))
    assert "corrected by Holm for 6 pairs" in smallest.sentence


def test_pictures_are_tested_network_by_network(tmp_path):
    right = torch.arange(PICTURES) < 300
    for name, changed, fields in (
        ("a", [], {}),
        ("b", [300, 301, 302, 303, 304, 305, 306], {"batch_size": 32}),
    ):
        chosen = right.clone()
        chosen[changed] = True
        chosen[0] = name == "a"
        judged_run(tmp_path / name, chosen, **fields)
    pair = only_pair(compare([tmp_path]))
    (test,) = pair.mcnemar.values()
    assert (test.only_a, test.only_b, round(test.p, 4)) == (1, 7, 0.0391)
    low, high = pair.bootstrap
    assert low <= 6 / PICTURES <= high


def test_nothing_is_evaluated_unless_told(tmp_path, monkeypatch):
    from cifarlab import comparison

    group_at(tmp_path / "a", [0.7])
    run = unjudged_run(tmp_path / "b", batch_size=32)
    with pytest.raises(
        UserError, match="b has not been judged on the test pictures with its best weights: `cifarlab"
    ):
        compare([tmp_path])
    asked: list[Run] = []
    monkeypatch.setattr(comparison, "evaluate", lambda run, **_: asked.append(run))
    with pytest.raises(UserError, match="has not been judged"):  # the stand-in judges nothing
        compare([tmp_path], evaluate_missing=True)
    assert run.path in [each.path for each in asked]


def test_answers_of_weights_that_were_trained_on_are_not_taken(tmp_path):
    group_at(tmp_path / "a", [0.7])
    run = judged_run(tmp_path / "b", torch.ones(PICTURES, dtype=torch.bool), batch_size=32)
    run.publish(run.metrics, {"weight": torch.ones(1)}, {})
    with pytest.raises(UserError, match="has not been judged"):
        compare([tmp_path])


def test_a_record_is_compared_by_its_accuracy_alone(tmp_path):
    group_at(tmp_path / "a", LOW[:3])
    for run in map(Run, group_at(tmp_path / "b", HIGH[:3], batch_size=32).iterdir()):
        for file in (*run.path.glob("weights-*"), *run.path.glob("logits-*")):
            file.unlink()
    result = compare([tmp_path])
    assert only_pair(result).verdict == "b is better" and not only_pair(result).mcnemar
    assert "nothing is said picture by picture" in result.notes[0]


def test_other_data_other_pictures_and_one_group_are_refused(tmp_path):
    group_at(tmp_path / "a", [0.7])
    with pytest.raises(UserError, match="1 finished run, all of one recipe, demo: give"):
        compare([tmp_path / "a"])
    group_at(tmp_path / "b", [0.7], data="cifar10")
    with pytest.raises(
        UserError, match=r"are on different data \(demo sha256:demo, cifar10 sha256:cifar10\)"
    ):
        compare([tmp_path])
    about = json.loads((tmp_path / "a" / "seed-0" / "data.json").read_text())
    for name, indices in (("c", [1, 3]), ("d", [2, 4])):
        run = judged_run(tmp_path / name, [True] * 10, split="validation", batch_size=10 + indices[0])
        run._write({"data.json": json.dumps(about | {"validation_indices": indices}).encode()})
    with pytest.raises(UserError, match="validate on different pictures"):
        compare([tmp_path / "c", tmp_path / "d"], split="validation")
    with pytest.raises(UserError, match="--split should be test or validation, 'train' given"):
        compare([tmp_path / "c", tmp_path / "a"], split="train")


def test_unfinished_runs_and_seeds_that_are_there_twice_are_left_out(tmp_path):
    group_at(tmp_path / "a", [0.70, 0.71])
    judged_run(tmp_path / "a" / "seed-1-again", [True] * PICTURES, seed=1)
    group_at(tmp_path / "b", [0.70, 0.71], batch_size=32, epochs=1)
    unfinished = unjudged_run(tmp_path / "b" / "seed-2", seed=2, batch_size=32)
    (unfinished.path / "metrics.jsonl").unlink()
    result = compare([tmp_path])
    assert [group.summary.n for group in result.groups] == [2, 2]
    assert "has the seed of" in result.notes[0] and "has finished 0 of 1 epochs" in result.notes[1]


def test_folds_are_judged_on_what_they_held_out_with_wider_intervals(tmp_path):
    for name, accuracies, fields in (("a", LOW[:3], {}), ("b", HIGH[:3], {"batch_size": 32})):
        for fold, accuracy in enumerate(accuracies):
            right = torch.arange(PICTURES) < round(PICTURES * accuracy)
            folded = {"data__validation": "fold", "data__folds": 3, "data__fold": fold}
            judged_run(tmp_path / name / f"fold-{fold}", right, split="validation", **folded, **fields)
    result = compare([tmp_path])
    pair = only_pair(result)
    plain = difference(LOW[:3], HIGH[:3], paired=True)
    assert result.split == "validation" and "3 folds each" in pair.sentence
    assert pair.difference.high - pair.difference.mean == pytest.approx(
        np.sqrt(1 + 3 / 2) * (plain.high - plain.mean)
    )
    assert fold_inflation(5) == 1.5
    with pytest.raises(UserError, match="leave --split out"):
        compare([tmp_path], split="test")
    group_at(tmp_path / "c", [0.7])
    with pytest.raises(UserError, match="is a cross-validation and another group is not"):
        compare([tmp_path])


# The command


def test_json_is_the_contract(tmp_path, capsys):
    group_at(tmp_path / "a", LOW)
    group_at(tmp_path / "b", HIGH, batch_size=32)
    code, out, err = ask(capsys, "compare", tmp_path / "a", tmp_path / "b", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [set(group) >= {"name", "n", "mean", "sd", "interval"} for group in document["groups"]] == [
        True,
        True,
    ]
    assert document["groups"][0]["mean"] == pytest.approx(np.mean(LOW))
    (pair,) = document["pairs"]
    assert set(pair) >= {"a", "b", "difference", "interval", "p", "adjusted_p", "verdict"}
    assert pair["interval"][0] < pair["difference"] < pair["interval"][1]


def test_the_table_fits_80_columns_and_the_figure_is_drawn(tmp_path, capsys):
    group_at(tmp_path / "a", LOW, augment__flip=0.25, loss__label_smoothing=0.1)
    group_at(tmp_path / "b", HIGH, batch_size=32)
    group_at(tmp_path / "c", [0.7], recipe="vgg1")
    code, out, err = ask(capsys, "compare", tmp_path, "--figure", tmp_path / "figure.png")
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines()), out
    assert "B is better" in out and "not tested" in out
    assert "validated on the test set while it trained" in err
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_mistakes_of_the_command(tmp_path, capsys):
    for arguments, message in (
        ((tmp_path / "nothing",), "there is nothing at"),
        ((tmp_path, "--deviation", 0), "--deviation should be above 0 points"),
    ):
        code, out, err = ask(capsys, "compare", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err


def test_the_figure_marks_what_is_shown():
    rows = [Interval("B - A", 0.02, 0.01, 0.03, marked=True), Interval("C - A", 0.0, -0.01, 0.01)]
    figure = intervals([Interval("A: demo " * 9, 0.7, None, None, [0.7])], rows, title="test accuracy")
    colours = {line.get_color() for line in figure.axes[1].get_lines()}
    assert {BLUE, ORANGE} <= colours
    figure.canvas.draw()
    drawn = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert drawn.x0 >= 0 and drawn.x1 <= figure.bbox.x1 and drawn.y1 <= figure.bbox.y1


def test_a_group_without_a_finished_run_is_left_out(tmp_path):
    for name, size in (("a", 32), ("b", 64)):
        group_at(tmp_path / name, [0.5, 0.52, 0.54], batch_size=size)
    (unjudged_run(tmp_path / "c" / "seed-0", batch_size=16).path / "metrics.jsonl").unlink()
    result = compare([tmp_path])
    assert len(result.groups) == 2 and any("c/seed-0 has finished 0 of 1" in note for note in result.notes)
    with pytest.raises(UserError, match=r"give runs of two or more \(left out: .*seed-0"):
        compare([tmp_path / "a", tmp_path / "c"])

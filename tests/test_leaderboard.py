"""The leaderboard, on runs whose answers are made up."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifarlab.cli import main
from cifarlab.leaderboard import leaderboard, page
from tests.judged import group_at, judged_run, unjudged_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of seeds, one that validated on the test set, one not judged, one not finished."""
    top = tmp_path_factory.mktemp("runs")
    group_at(top / "low", [0.60, 0.62, 0.64])
    group_at(top / "high", [0.70, 0.72, 0.74], batch_size=32)
    group_at(top / "saw", [0.9], recipe="vgg1", data="cifar10")
    unjudged_run(top / "unjudged", "vgg2", data__validation="stratified")
    unfinished = unjudged_run(top / "unfinished", "vgg3")
    (unfinished.path / "metrics.jsonl").unlink()
    return top


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_groups_are_in_the_order_of_their_mean_test_accuracy(folder):
    entries = leaderboard([folder])
    names = ["vgg1", "demo (batch_size=32)", "demo (batch_size=64)", "vgg2", "vgg3"]
    assert [entry.name for entry in entries] == names
    high = entries[1]
    assert (high.test.n, high.test.mean) == (3, pytest.approx(0.72))
    assert high.test.sd == pytest.approx(np.std([0.70, 0.72, 0.74], ddof=1))
    assert (high.epochs, high.seconds, high.hardware) == (1, 60.0, "a processor, 1 thread")
    assert (entries[0].saw_test, high.saw_test, high.test_set_uses) == (True, False, 1)
    assert [(entry.n_unjudged, entry.n_unfinished) for entry in entries[3:]] == [(1, 0), (0, 1)]
    assert entries[3].validation.mean == 0.5 and entries[0].validation is None


def test_the_parameters_of_a_changed_network_are_counted(tmp_path):
    run = unjudged_run(tmp_path / "run", model__widths=[4, 8])
    (entry,) = leaderboard([tmp_path])
    assert run.recipe.parameters is None and entry.parameters == 34_974  # by hand
    (whole,) = leaderboard([unjudged_run(tmp_path / "whole").path])
    assert whole.parameters == 164_698


def test_a_seed_counts_once_and_weights_that_were_trained_on_are_not_judged(tmp_path):
    group_at(tmp_path, [0.6, 0.7])
    judged_run(tmp_path / "again", [True] * 10, seed=1)
    again = judged_run(tmp_path / "seed-2", [True] * 10, seed=2)
    again.publish(again.metrics, {"weight": again.load_weights()[0]["weight"] + 1}, {})
    (entry,) = leaderboard([tmp_path])
    assert entry.test.n == 2 and entry.n_unjudged == 1
    use = {"split": "validation", "weights": "best", "weights_sha256": again.weights_checksum("best")}
    again.update_evaluations(lambda content: content["test_set_uses"].append(use))
    assert (
        leaderboard([tmp_path])[0].n_unjudged == 1
    )  # a use of the new weights, but the figure is the old one's


def test_the_figure_with_views_stands_beside_the_one_without(tmp_path, capsys):
    for seed in range(2):
        run = judged_run(tmp_path / f"seed-{seed}", [True] * 8 + [False] * 2, seed=seed)
        run.replan(run.recipe.model_copy(update={"test_time_views": "mirror-shift"}))
        tta = {"tta": True, "accuracy_with_tta": 0.9 + 0.02 * seed, "tta_views": 6}
        run.update_evaluations(lambda content, tta=tta: content["test"]["best"].update(tta))
    (entry,) = leaderboard([tmp_path])
    assert (entry.test.mean, entry.test_with_tta.mean, entry.tta_views) == (0.8, pytest.approx(0.91), 6)
    code, out, err = ask(capsys, "leaderboard", tmp_path)
    assert code == 0, err
    assert "80.00 % ± 0.00" in out
    assert "with 6 test-time views 91.00 % ± 1.41" in " ".join(out.split())
    shown = page([entry], title="board")
    assert "80.00 % ± 0.00" in shown and "91.00 % ± 1.41 (6)" in shown


def test_the_table_fits_80_columns_and_marks_what_saw_the_test_set(folder, capsys):
    code, out, err = ask(capsys, "leaderboard", folder)
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines()), out
    assert "72.00 % ± 2.00    67.03 to 76.97 %     3  demo, demo\n      batch_size=32\n" in out
    assert out.index("† validated on") < out.index("vgg1 †")
    assert "vgg1 †, cifar10" in out and "† validated on the test set while it trained" in out
    assert "1 not judged" in out and "1 not finished; 0 of 1 epoch" in out


def test_json(folder, capsys):
    code, out, err = ask(capsys, "leaderboard", folder, "--json")
    assert code == 0, err
    first, second = json.loads(out)[:2]
    assert first["validated_on_test_set"] and first["test_accuracy"]["interval"] is None
    assert second["test_accuracy"]["n"] == 3 and len(second["runs"]) == 3


def test_no_runs_is_one_clear_line(tmp_path, capsys):
    code, out, err = ask(capsys, "leaderboard", tmp_path)
    assert (code, out) == (2, "") and "no run is in" in err


def test_the_page_needs_nothing_else_and_shows_every_group(folder, tmp_path, capsys):
    code, _, err = ask(capsys, "leaderboard", folder, "--html", tmp_path / "board.html")
    assert code == 0, err
    content = (tmp_path / "board.html").read_text("utf-8")
    assert not re.findall(r"(?:src|href)=|url\(|https?:|@import", content)
    assert content.count('<tr class="entry') == 5 and content.count('saw-test" data-data') == 2
    assert "72.00 % ± 2.00" in content and "prefers-color-scheme: dark" in content
    assert "<option>cifar10</option>" in content


def test_names_from_outside_are_no_markup(folder):
    (entry, *_rest) = leaderboard([folder])
    shown = page([type(entry)(**{**vars(entry), "hardware": "<script>alert(1)</script>"})], title="a <b> & c")
    assert "<script>alert" not in shown and "a &lt;b&gt; &amp; c" in shown


def test_pytorch_is_not_loaded_for_a_list_of_known_recipes(folder):
    listing = "import sys; from cifarlab.leaderboard import leaderboard; leaderboard([sys.argv[1]])"
    code = f"{listing}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"

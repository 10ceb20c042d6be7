import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from cifarlab import environment, recipes
from cifarlab.cli import app, main, screen
from cifarlab.data import open_source
from cifarlab.interrupts import stop_on_signals
from cifarlab.progress import epoch_line
from cifarlab.recipes import RECIPES
from cifarlab.run import Run
from cifarlab.text import bar, clock_after, duration, size

COMMANDS = tuple(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
NOT_ON_START = ("torch", "numpy", "matplotlib", "scipy", "sklearn", "PIL")


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def ask_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> object:
    code, out, err = ask(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake is answered with."""
    code, out, err = ask(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def run(demo_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(demo_run.path, tmp_path / "copy")
    return Run(tmp_path / "copy")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    images = open_source("demo").load("train").images
    for index in range(3):
        Image.fromarray(images[index]).save(folder / f"{index}.png")
    return folder


# Starting


@pytest.mark.parametrize(
    ("arguments", "most_seconds"), [(["--help"], 0.3), (["train", "vgg33"], 0.5), (["recipes"], 0.5)]
)
def test_answers_at_once(arguments: list[str], most_seconds: float) -> None:
    seconds = []
    for _ in range(3):  # processor time, which other programs on the machine change least
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "cifarlab.cli", *arguments], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < most_seconds * slowness()


def slowness() -> float:
    """Of this machine beside those for which the limits are meant, 1 if it is as fast."""
    before = time.process_time()
    sum(number * number for number in range(1_000_000))
    return max(1.0, (time.process_time() - before) / 0.06)


def test_nothing_heavy_is_imported_to_list_recipes() -> None:
    code = (
        "import sys; from cifarlab.cli import main; main(['recipes']); print(*sys.modules, file=sys.stderr)"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(NOT_ON_START) & set(listed.stderr.split())


def test_help_of_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        code, out, _ = ask(capsys, command, "--help")
        assert code == 0
        assert re.search(rf"Examples?:\n +cifarlab {command}", out)


@pytest.mark.parametrize(
    "command",
    [["recipes"], ["show", "vgg3-bn"], ["data", "demo"], ["train", "demo", "--data", "demo", "--plan"]],
)
def test_lines_in_a_pipe_end_with_what_they_say(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, out, _ = ask(capsys, *command)
    assert code == 0
    assert len(out.splitlines()) > 5
    assert [line for line in out.splitlines() if line != line.rstrip()] == []


def test_without_a_command_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys)
    assert code == 0
    assert all(f"  {command} " in out for command in COMMANDS)
    assert ask(capsys, "--version")[1].startswith("cifarlab ")


def test_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        process = subprocess.run(
            [sys.executable, "-m", "cifarlab.cli", "recipes"],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert process.stderr == b""
    assert process.returncode == 141


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian"], ["unknown command 'trian'; did you mean 'train'?"]),
        (["train", "vgg33"], ["unknown recipe 'vgg33'; did you mean 'vgg3'?"]),
        (["show", "dmeo"], ["did you mean 'demo'?"]),
        (["train", "demo", "--epoch", "3"], ["unknown option '--epoch'; did you mean '--epochs'?"]),
        (["resume"], ["missing argument 'RUN'"]),
        (["train", "demo", "--epochs"], ["'--epochs' requires an argument"]),
        (["resume", "x", "--epochs", "many"], ["'--epochs': should be a whole number"]),
        (["data", "cfar10"], ["unknown data set 'cfar10'; did you mean 'cifar10'?"]),
        (["data", "./nowhere"], ["no such file or folder", "nowhere"]),
        (["data", "demo", "--per-class", "3"], ["--per-class needs --figure FILE"]),
        (["data", "demo", "--per-class", "0", "--figure", "x.png"], ["should be at least 1, 0 given"]),
        (["train", "demo", "--set", "epochs"], ["--set needs field=value, 'epochs' given"]),
        (["train", "demo", "--epochs", "3", "--set", "epochs=4"], ["epochs is given twice"]),
        (
            [
                "train",
                "demo",
                "--epochs",
                "0",
                "--seed",
                "x",
                "--device",
                "gpu",
                "--set",
                "batch_size=-1",
                "--set",
                "augment.flp=0.5",
                "--set",
                "optimizer.name=adamm",
            ],
            ["epochs", "seed", "device.name", "'gpu'", "batch_size", "augment.flip", "did you mean 'adam'"],
        ),
        (["resume", "nowhere"], ["there is no run at nowhere"]),
        (["evaluate", "."], ["no run is in .: a run is a folder that holds recipe.json"]),
        (["predict", "nowhere", "x.png"], ["there is no nowhere"]),
        (["predict", "--run", ".", "."], [". is not a run"]),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], in_empty_folder: Path, arguments: list[str], parts: list[str]
) -> None:
    message = mistake(capsys, *arguments)
    for part in parts:
        assert part in message
    assert list(in_empty_folder.iterdir()) == []


def test_a_group_where_one_run_is_wanted_names_a_run(
    capsys: pytest.CaptureFixture[str], in_empty_folder: Path
) -> None:
    for seed in ("seed-1", "seed-0"):
        run = in_empty_folder / "group" / seed
        run.mkdir(parents=True)
        (run / "recipe.json").touch()
    assert "it holds runs: give one of them, as group/seed-0\n" in mistake(capsys, "resume", "group")


def test_what_a_terminal_would_act_on_is_not_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in mistake(capsys, "train", "x\x1b[31m\ny")


def test_a_bug_says_that_it_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "write_json", lambda _: 1 / 0)
    code, out, err = ask(capsys, "recipes", "--json")
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert "this is a bug in cifarlab (ZeroDivisionError)" in err


def test_a_full_disk_is_no_bug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(screen, "write_json", full)
    assert mistake(capsys, "recipes", "--json") == "error: /somewhere: No space left on device\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_too_little_memory_is_no_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(_: object) -> None:
        raise error

    monkeypatch.setattr(screen, "write_json", full)
    assert "not enough memory: try a smaller batch_size" in mistake(capsys, "recipes", "--json")


# recipes, show, data


def test_recipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ask_json(capsys, "recipes")
    assert isinstance(rows, list)
    assert [row["name"] for row in rows] == list(RECIPES)
    keys = {"name", "source", "published_accuracy", "published_split", "test_time_views"}
    keys |= {"parameters", "trainable_parameters"}
    assert all(set(row) == keys for row in rows)
    bn = next(row for row in rows if row["name"] == "vgg3-bn")
    assert (bn["published_accuracy"], bn["published_split"]) == (0.8862, "test")
    assert (bn["parameters"], bn["trainable_parameters"]) == (552_874, 551_722)
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        _, out, _ = ask(capsys, "recipes")
        assert max(len(line) for line in out.splitlines()) <= columns
        assert all(re.search(rf"^{name} ", out, re.MULTILINE) for name in RECIPES)
        assert "These validate on the test set" in out


def test_show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    content = ask_json(capsys, "show", "vgg3-bn")
    assert isinstance(content, dict)
    assert set(content) == {"name", "layers", "recipe"}
    first = content["layers"][0]
    assert first | {"name": ""} == {
        "name": "",
        "type": "Conv2d",
        "output_shape": [32, 32, 32],
        "parameters": 3 * 3 * 3 * 32 + 32,
        "multiply_adds": 32 * 32 * 32 * 27,
    }
    assert content["recipe"] == RECIPES["vgg3-bn"].model_dump(mode="json")
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = ask(capsys, "show", "vgg3-bn")
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "551,722 parameters to train, 552,874 with batch norm's running statistics" in out
    for setting in ("model.batch_norm", "optimizer.momentum", "augment.shift", "schedule.name", "epochs"):
        assert re.search(rf"^{re.escape(setting)} ", out, re.MULTILINE)


def test_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    content = ask_json(capsys, "data", "demo")
    assert isinstance(content, dict)
    source = open_source("demo")
    per_class = np.bincount(source.load("train").labels).tolist()
    assert content["name"] == "demo"
    assert content["classes"] == list(source.classes)
    assert content["checksum"] == source.checksum
    assert content["splits"]["train"] == {"n": sum(per_class), "per_class": per_class}
    code, out, _ = ask(capsys, "data", "demo", "--figure", tmp_path / "x.png", "--per-class", "2")
    assert code == 0
    assert source.checksum in out
    assert "5,000 pictures" in out
    with Image.open(tmp_path / "x.png") as figure:
        assert figure.format == "PNG"


def test_the_figure_of_the_data_is_of_training_pictures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cifarlab.figures

    drawn: list[np.ndarray] = []

    def picture_grid(images: np.ndarray, *_args: object, **_options: object) -> None:
        drawn.append(images)

    monkeypatch.setattr(cifarlab.figures, "picture_grid", picture_grid)
    monkeypatch.setattr(cifarlab.figures, "save_figure", lambda *_: None)
    assert ask(capsys, "data", "demo", "--figure", tmp_path / "x.png")[0] == 0
    assert (drawn[0][:9] == open_source("demo").load("train").images[:9]).all()


# train, resume


@pytest.mark.parametrize(
    ("free", "trained", "note"),
    [
        (None, "demo", "no recipe named: demo"),
        (4_000_000_000, "demo", "no recipe named: demo"),
        (
            900_000_000,
            "vgg1",
            "no recipe named: vgg1, as 900 MB of memory are free, and demo may take 3.0 GB",
        ),
    ],
)
def test_without_a_recipe_the_fast_one_is_trained_or_what_fits(
    capsys: pytest.CaptureFixture[str],
    in_empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: int | None,
    trained: str,
    note: str,
) -> None:
    monkeypatch.setattr(environment, "available_memory_bytes", lambda: free)
    monkeypatch.setattr(recipes, "DEFAULT", "demo")
    monkeypatch.setattr(recipes, "SMALL_DEFAULT", "vgg1")
    small = ["--set", "model.widths=[4]", "--set", "model.dense=8", "--set", "device.threads=1"]
    code, out, err = ask(capsys, "train", "--data", "demo", "--plan", "--json", *small)
    assert code == 0 and note in err
    assert json.loads(out)["recipe"] == trained


def test_the_default_recipes_exist() -> None:
    assert {recipes.DEFAULT, recipes.SMALL_DEFAULT} <= set(RECIPES)
    free = environment.available_memory_bytes()
    assert free is None or 50e6 < free < 1e14


def test_plan_leaves_no_trace(
    capsys: pytest.CaptureFixture[str], in_empty_folder: Path, small_settings: list[str]
) -> None:
    options = [*small_settings, "--set", "data.validation=test", "--plan"]
    content = ask_json(capsys, "train", "demo", "--data", "demo", *options)
    assert isinstance(content, dict)
    assert (content["n_train"], content["n_validation"], content["validation"]) == (5000, 2000, "test")
    assert content["elapsed_seconds"] > 0
    code, out, _ = ask(capsys, "train", "demo", "--data", "demo", *options)
    assert code == 0
    assert "2,000 to validate on: the TEST SET" in out
    assert screen.VALIDATION_IS_TEST in out
    assert re.search(r"expected +\d.* images/s: done at \d\d:\d\d", out)
    assert "of memory" in out
    assert "of disk" in out
    assert list(in_empty_folder.iterdir()) == []


def test_train_off_a_terminal(
    capsys: pytest.CaptureFixture[str], in_empty_folder: Path, small_settings: list[str]
) -> None:
    code, out, err = ask(capsys, "train", "demo", "--data", "demo", "--seed", "3", *small_settings)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    run = Run(in_empty_folder / "runs" / "demo-s3-1")
    lines = re.findall(r"^ +(\d)/2 .*$", out, re.MULTILINE)
    assert lines == ["1", "2"]
    best = re.findall(r"^ +(\d)/2 .* best$", out, re.MULTILINE)
    assert best[-1] == str(run.best_epoch)
    for command in ("evaluate", "predict"):
        assert f"cifarlab {command} runs/demo-s3-1" in out
    assert (in_empty_folder / re.search(r"^curves +(.*)$", out, re.MULTILINE)[1]).is_file()  # type: ignore[index]
    assert "already holds a run" in ask(capsys, "train", "demo", "--data", "demo", "--out", run.path)[2]


def test_resume_beyond_the_end(capsys: pytest.CaptureFixture[str], run: Run) -> None:
    before = (run.path / "metrics.jsonl").read_text()
    content = ask_json(capsys, "resume", run.path, "--epochs", "3")
    rows = Run(run.path).metrics
    assert content == {
        "run": str(run.path),
        "epochs": 3,
        "elapsed_seconds": rows[-1]["elapsed_seconds"],
        "validation_accuracy": rows[-1]["validation_accuracy"],
        "validation_loss": rows[-1]["validation_loss"],
    }
    assert (run.path / "metrics.jsonl").read_text().startswith(before)
    assert "less than the 3 epochs" in mistake(capsys, "resume", run.path, "--epochs", "1")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_settings: list[str], number: int, code: int
) -> None:
    def interrupt() -> None:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    settings = [*small_settings, "--set", "epochs=1000", "--set", "data.validation_images=4900"]
    thread = threading.Thread(target=interrupt)
    thread.start()
    answered, _, err = ask(capsys, "train", "demo", "--data", "demo", "--out", tmp_path / "run", *settings)
    thread.join()
    assert answered == code
    assert f"go on with: cifarlab resume {tmp_path / 'run'}" in err
    assert "Traceback" not in err
    finished = len(Run(tmp_path / "run").metrics)
    assert 1 <= finished < 1000
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ask(capsys, "resume", tmp_path / "run", "--epochs", finished + 1)[0] == 0
    assert len(Run(tmp_path / "run").metrics) == finished + 1


def test_a_second_signal_kills_at_once() -> None:
    code = (
        "import signal; from cifarlab.interrupts import stop_on_signals\n"
        "with stop_on_signals(lambda number: print('saving', number, flush=True)):\n"
        "    signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGINT); print('still here')"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (-signal.SIGINT, f"saving {int(signal.SIGTERM)}\n")


def test_in_another_thread_no_handler_is_installed() -> None:
    found: list[object] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.append((signal.getsignal(signal.SIGINT), stop.is_set()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(signal.default_int_handler, False)]


def test_divergence_is_exit_code_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_settings: list[str]
) -> None:
    settings = [text.replace("learning_rate=0.02", "learning_rate=1e30") for text in small_settings]
    code, _, err = ask(capsys, "train", "demo", "--data", "demo", "--out", tmp_path / "run", *settings)
    assert code == 3
    assert "not finite" in err
    assert "--set optimizer.learning_rate" in err


def test_an_epoch_fits_80_columns() -> None:
    row = {
        "epoch": 100,
        "train_loss": 12.34567,
        "train_accuracy": 1.0,
        "validation_loss": None,
        "validation_accuracy": None,
        "learning_rate": 1.23456e-05,
        "images_per_second": 123456.7,
        "elapsed_seconds": 98765.4,
    }
    line = epoch_line(row, 400, is_best=True)
    assert len(line) <= 85
    assert line.split() == [
        "100/400",
        "12.3457",
        "100.0",
        "%",
        "–",
        "–",
        "1.23e-05",
        "123,457",
        "98,765",
        "best",
    ]


# evaluate, predict


def test_evaluate(capsys: pytest.CaptureFixture[str], run: Run) -> None:
    code, out, err = ask(capsys, "evaluate", run.path)
    assert (code, err) == (0, "")
    again, document, note = ask(capsys, "evaluate", run.path, "--json")
    assert again == 0
    assert "no picture was opened again" in note
    content = json.loads(document)
    keys = ["run", "split", "weights", "n", "loss", "accuracy", "macro_accuracy", "macro_f1"]
    keys += ["tta", "accuracy_with_tta", "tta_views", "classes", "confusion"]
    assert list(content) == keys
    assert set(content["classes"][0]) == {"name", "precision", "recall", "f1", "n"}
    assert f"{100 * content['accuracy']:.2f} %" in out
    assert max(len(line) for line in out.splitlines() if str(run.path) not in line) <= 80
    assert "did you mean 'test'?" in mistake(capsys, "evaluate", run.path, "--split", "tset")


def test_predict(capsys: pytest.CaptureFixture[str], run: Run, pictures: Path) -> None:
    rows = ask_json(capsys, "predict", run.path, pictures, "--top", "4")
    assert isinstance(rows, list)
    assert [row["path"] for row in rows] == [str(pictures / f"{index}.png") for index in range(3)]
    for row in rows:
        assert row["error"] is None
        chances = [each["probability"] for each in row["predictions"]]
        assert len(chances) == 4
        assert chances == sorted(chances, reverse=True)
        assert all(run.classes[each["index"]] == each["class"] for each in row["predictions"])
    code, out, _ = ask(capsys, "predict", "--run", run.path, pictures / "0.png", "--top", "1")
    first = rows[0]["predictions"][0]
    assert code == 0
    assert f"{first['class']} " in out
    assert f"{100 * first['probability']:.1f} %" in out


def test_a_bad_picture_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], run: Run, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "1.png").write_bytes(b"not a picture")
    table = tmp_path / "table.csv"
    code, out, err = ask(capsys, "predict", run.path, pictures, "--json", "--csv", table, "--top", "1")
    assert code == 2
    assert re.fullmatch(r"2 pictures and 1 that could not be read, written to .*\nerror: 1 of 3 .*\n", err)
    rows = json.loads(out)
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["predictions"] == []
    lines = table.read_text().splitlines()
    assert len(lines) == 4
    assert lines[0] == "path,rank,class,probability,error,note"


@pytest.mark.parametrize("broken", [1, 2])
def test_a_bad_picture_is_told_once(
    capsys: pytest.CaptureFixture[str], run: Run, pictures: Path, broken: int
) -> None:
    for index in range(broken):
        (pictures / f"{index}.png").write_bytes(b"not a picture")
    code, out, err = ask(capsys, "predict", run.path, pictures)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {broken} of 3 pictures could not be read")
    for index in range(3):
        assert (out + err).count(f"{index}.png") == 1
        assert (f"{index}.png" in err) == (index < broken)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{run}"], "nothing to predict"),
        (["{run}", "{pictures}/nowhere.png"], "no such file or folder"),
        (["{run}", "{pictures}", "--top", "0"], "top should be a whole number from 1"),
        (["{run}", "{pictures}", "--csv", "{pictures}"], "is a folder: give a file"),
        (["{run}", "{pictures}", "--csv", "{pictures}/no/table.csv"], "there is no folder"),
        (["{pictures}", "{run}"], "is a run: put it first"),
        (["--run", "{pictures}", "{pictures}"], "is not a run"),
    ],
)
def test_a_path_is_never_taken_for_something_else(
    capsys: pytest.CaptureFixture[str], run: Run, pictures: Path, arguments: list[str], part: str
) -> None:
    given = [argument.format(run=run.path, pictures=pictures) for argument in arguments]
    assert part in mistake(capsys, "predict", *given)


def test_every_output_says_that_validation_was_the_test_set(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_settings: list[str], pictures: Path
) -> None:
    path = tmp_path / "run"
    settings = [*small_settings, "--epochs", "1", "--set", "data.validation=test"]
    settings = [
        text
        for pair in zip(settings[::2], settings[1::2], strict=True)
        for text in pair
        if "epochs=" not in pair[1]
    ]
    outputs = [ask(capsys, "train", "demo", "--data", "demo", "--out", path, *settings)]
    assert "validation = test set" in outputs[0][1]
    outputs += [
        ask(capsys, "resume", path),
        ask(capsys, "evaluate", path),
        ask(capsys, "predict", path, pictures),
    ]
    for code, out, err in outputs:
        assert code == 0
        assert screen.VALIDATION_IS_TEST in out + err


# Numbers as people read them


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7_500, "2 h 05 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_and_bars() -> None:
    sizes = [size(n) for n in (0, 999, 999_600, 1_234_000, 99_960_000, 2_000_000_000)]
    assert sizes == ["0 B", "999 B", "1.0 MB", "1.2 MB", "100 MB", "2.0 GB"]
    assert [bar(fraction, 4) for fraction in (0.0, 1 / 32, 0.5, 1.0, 1.5)] == [
        "",
        "▏",
        "██",
        "████",
        "████",
    ]


def test_the_clock_names_the_day_when_it_is_another_one() -> None:
    noon = time.mktime((2026, 1, 13, 12, 0, 0, 0, 0, -1))
    assert clock_after(3600, noon) == "13:00"
    assert clock_after(86400, noon).endswith("14 Jan, 12:00")

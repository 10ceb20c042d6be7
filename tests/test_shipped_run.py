"""The run that comes with the package: made by scripts/ship_weights.py, used where no run is named, only read."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from cifarlab import Run, UserError, load_predictor, shipped_run, train
from cifarlab.cli import main
from cifarlab.models import build_model
from cifarlab.recipe import override
from cifarlab.recipes import RECIPES
from cifarlab.transfer import begin_with, open_base
from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(demo_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped run, of the demo network."""
    spec = importlib.util.spec_from_file_location("ship_weights", ROOT / "scripts" / "ship_weights.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    target = tmp_path_factory.mktemp("package") / "shipped"
    script.main(demo_run.path, target)
    return target


@pytest.fixture
def shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(shipped_run, "FOLDER", folder)
    return Run(folder)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return path


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_ships_is_small_whole_and_of_no_machine(shipped: Run, demo_run: Run) -> None:
    files = contents(shipped.path)
    assert set(files) == {
        *("recipe.json", "data.json", "environment.json", "metrics.jsonl", "metrics.csv"),
        *("evaluation.json", "calibration.json", "weights-best.safetensors", "SHA256SUMS"),
    }
    tensors = load_file(shipped.path / "weights-best.safetensors")
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    assert {str(tensor.dtype) for tensor in floats} == {"torch.float16"}
    for name, content in files.items():
        if name != "weights-best.safetensors":
            assert not re.search(rb'"(/|[A-Z]:)', content), name
            assert str(demo_run.path).encode() not in content
    (use,) = shipped.evaluations["test_set_uses"]
    assert shipped.calibration is not None
    assert use["weights_sha256"] == shipped.weights_checksum("best") == shipped.calibration["weights_sha256"]
    assert shipped.recipe == demo_run.recipe and shipped.is_record


def test_pictures_without_a_run_are_answered_by_it_and_a_line_says_so(
    shipped: Run, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(shipped.path)
    code, out, err = ask(capsys, "predict", picture)
    assert code == 0, err
    accuracy = 100 * shipped.evaluations["test"]["best"]["accuracy"]
    line = f"answered by demo, which comes with cifarlab: {accuracy:.2f} % of demo's test pictures right"
    assert line in out
    code, out, err = ask(capsys, "predict", picture, "--json")
    assert code == 0 and line in err
    (same,) = load_predictor().predict(picture)
    assert json.loads(out) == [same.to_dict()]
    code, named, err = ask(capsys, "predict", shipped.path, picture, picture.parent)
    assert code == 0 and line in named
    assert contents(shipped.path) == before


def test_evaluate_without_a_run_finds_what_is_recorded(
    shipped: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(shipped.path)
    code, out, err = ask(capsys, "evaluate")
    assert code == 0, err
    assert "as recorded with the weights that come with cifarlab, to the last digit" in out
    code, out, err = ask(capsys, "evaluate", "--json", "--split", "validation")
    assert json.loads(out)["accuracy"] == shipped.evaluations["validation"]["best"]["accuracy"]
    assert contents(shipped.path) == before
    code, _, err = ask(capsys, "evaluate", "--split", "train")
    assert code == 2 and "nothing is recorded" in err


def test_another_figure_than_recorded_is_one_line_and_exit_code_1(
    shipped: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in contents(shipped.path).items():
        (copy / name).write_bytes(content)
    monkeypatch.setattr(shipped_run, "FOLDER", copy)
    Run(copy).update_evaluations(lambda content: content["test"]["best"].update(accuracy=0.5))
    code, out, err = ask(capsys, "evaluate")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "recorded with accuracy 0.5 on the test split" in err


def test_a_copy_without_weights_says_so(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped_run, "FOLDER", tmp_path / "shipped")
    code, _, err = ask(capsys, "predict", picture)
    assert code == 2 and err.count("\n") == 1 and f"no run named: {picture} is not one" in err
    for command in (("evaluate",), ("train", "demo", "--data", "demo", "--init-from", "shipped")):
        code, _, err = ask(capsys, *command)
        assert code == 2 and "this copy of cifarlab comes without weights" in err
    with pytest.raises(UserError, match="comes without weights"):
        load_predictor()


def test_a_training_begins_with_it(
    shipped: Run, in_empty_folder: Path, small_settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ("train", "demo", "--data", "demo", "--init-from", "shipped")
    code, out, err = ask(capsys, *begun, *small_settings, "--plan")
    assert code == 0, err
    assert f"theweightsof{shipped.path}" in "".join(out.split())
    run = train("demo", data="demo", init_from="shipped", overrides=SMALL | {"epochs": 1})
    began = run.data["initial_weights"]
    assert (began["sha256"], began["new_layers"]) == (shipped.weights_checksum("best"), [])
    assert run.recipe.finetune.init_from == "shipped"
    code, _, err = ask(capsys, *begun, "--folds", 2)
    assert code == 2 and "cannot begin with shipped: it was trained on demo" in err


def test_a_training_of_another_family_cannot_begin_with_it(
    shipped: Run, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ask(capsys, "train", "fast94", "--data", "demo", "--init-from", "shipped")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "its network is of the family vgg, and that of fast94 is of airbench" in err
    assert not list(in_empty_folder.iterdir())


def test_a_run_that_is_called_like_it_goes_first(shipped: Run, demo_run: Run, in_empty_folder: Path) -> None:
    assert shipped_run.base_run("shipped").path == shipped.path
    shutil.copytree(demo_run.path, "shipped")
    assert shipped_run.base_run("shipped").path == Path("shipped")


@pytest.mark.skipif(not shipped_run.has_shipped_run(), reason="this copy has none")
def test_fast94_and_airbench94_can_begin_with_the_weights_of_the_package(
    in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fast94", "airbench94"):
        recipe = override(RECIPES[name], {"finetune.init_from": "shipped"})
        base = open_base(recipe)
        assert base is not None
        assert begin_with(build_model(recipe.model, 10), base, base.classes, set()) == []
        assert begin_with(build_model(recipe.model, 3), base, ("cat", "dog", "owl"), set()) == ["head"]
    code, _, err = ask(capsys, "train", "vgg3", "--data", "demo", "--init-from", "shipped")
    assert code == 2 and "it suits airbench94 and fast94" in err


def test_a_run_is_never_taken_for_pictures(
    shipped: Run, demo_run: Run, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ask(capsys, "predict", picture, demo_run.path)
    assert code == 2 and f"{demo_run.path} is a run: put it first" in err
    code, _, err = ask(capsys, "predict", demo_run.path.parent, picture)
    assert code == 2 and "it holds runs: give one of them" in err
    code, _, err = ask(capsys, "predict", picture.parent / "no.png")
    assert code == 2 and "there is no" in err

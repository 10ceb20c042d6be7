"""Transfer: what is frozen stays, what is new begins anew, earlier blocks learn slower, and resume stays exact."""

import dataclasses
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifarlab import Interrupted, Run, UserError, evaluate, features, load_predictor, training
from cifarlab.cli import main
from cifarlab.cost import estimate
from cifarlab.data import Source
from cifarlab.models import build_model
from cifarlab.models.specs import MLP, VGG
from cifarlab.recipe import Finetune
from cifarlab.recipes import RECIPES
from cifarlab.training import EpochDone
from cifarlab.transfer import frozen_layers, rate_factors
from tests.test_resume import exact
from tests.tiny import RECIPE, tiny_source, use_source

BASE = {"model.dense": 16, "epochs": 1, "data.preparation": "standardize-channels"}
CALM = {"optimizer.learning_rate": 0.005, "optimizer.clip_norm": 1.0}
NET = build_model(VGG(widths=(4, 4, 4), dense=8, batch_norm=True), 3)


def other_source(name: str = "demo", data_dir: Path | None = None, **_: Any) -> Source:
    """Darker pictures of other classes."""
    whole = tiny_source()

    def read(split: Any) -> Any:
        content = whole.load(split)
        return dataclasses.replace(content, images=content.images // 2)

    classes = tuple(f"other {name}" for name in whole.classes)
    return dataclasses.replace(whole, classes=classes, checksum=f"sha256:{7:064x}", read=read)


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        use_source(patch, tiny_source)
        out = tmp_path_factory.mktemp("base") / "run"
        return training.train(RECIPE, data="demo", out=out, overrides={**BASE, **CALM})


def trained(base: Run, out: Path, **changes: Any) -> Run:
    overrides = {**BASE, **CALM, **{name.replace("__", "."): value for name, value in changes.items()}}
    return training.train(RECIPE, data="demo", out=out, overrides=overrides, init_from=base)


def changed_layers(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    pairs = {name: (before[name], after[name]) for name in after}
    return {name.rpartition(".")[0] for name, (old, new) in pairs.items() if not torch.equal(old, new)}


def test_frozen_means_frozen_to_the_byte(base: Run, tmp_path: Path) -> None:
    run = trained(base, tmp_path / "run", epochs=2, finetune__freeze="block*", optimizer__weight_decay=0.01)
    before, after = base.load_weights()[0], run.load_weights("last")[0]
    frozen = [name for name in after if name.startswith("block")]
    assert any(name.endswith("running_var") for name in frozen)
    for name in frozen:
        assert before[name].numpy().tobytes() == after[name].numpy().tobytes(), name
    assert changed_layers(before, after) == {"dense", "dense_bn", "output"}


def test_a_run_is_the_beginning_of_another(base: Run, tmp_path: Path) -> None:
    run = trained(base, tmp_path / "run", optimizer__learning_rate=1e-12, finetune__freeze="block*")
    kernels = [name for name in base.load_weights()[0] if name.endswith("weight") and "_bn" not in name]
    for name in kernels:
        torch.testing.assert_close(run.load_weights("last")[0][name], base.load_weights()[0][name])
    began = run.data["initial_weights"]
    assert (began["run"], began["new_layers"]) == (str(base.path), [])
    assert began["sha256"] == base.weights_checksum("best")
    assert run.recipe.finetune.init_from == str(base.path)


def test_other_classes_get_a_new_output_and_the_base_s_preparation(
    base: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_source(monkeypatch, other_source)
    recipe = RECIPE.model_copy(update={"data": base.recipe.data})
    changes = {"finetune": Finetune(init_from=str(base.path), freeze=("block*", "dense*"))}
    job = training.prepare(recipe.model_copy(update=changes), "demo")
    first, theirs = job.model.state_dict(), base.load_weights()[0]
    assert changed_layers(theirs, first) == {"output"}
    assert job.initial_weights is not None and job.initial_weights["new_layers"] == ["output"]
    run = training.start(job, tmp_path / "run")
    for _ in training.fit(job, run):
        pass
    assert run.load_preparation("last") == base.load_preparation()
    assert changed_layers(theirs, run.load_weights("last")[0]) == {"output"}
    assert training.reopen(run.path)[0].stream.preparation == base.load_preparation()
    assert load_predictor(run).predict(other_source().load("train").images[:1])[0].error is None


def test_a_head_of_another_shape_begins_anew(base: Run, tmp_path: Path) -> None:
    run = trained(base, tmp_path / "run", model__dense=12, finetune__freeze="block*")
    assert run.data["initial_weights"]["new_layers"] == ["dense", "dense_bn", "output"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.widths": (8, 9)}, r"cannot be the base: block2_conv1.weight is 8x8x3x3 in it and 9x8x3x3 here"),
        ({"finetune.freeze": "blok1"}, r"'blok1' is no layer or block of this network.* block1_conv1, block1_conv1_bn"),
        ({"finetune.freeze": ["*"]}, "leaves nothing to train"),
        ({"finetune.unfreeze": "block2"}, "unfreeze needs freeze"),
        ({"finetune.freeze": "block*", "finetune.unfreeze": "blok2"}, "'blok2' is no layer or block"),
        ({"finetune.freeze": "block*", "finetune.unfreeze_every_epochs": 2}, "unfreeze_every_epochs needs unfreeze"),
        ({"finetune.freeze": ["dense"], "model.dense": 12}, "dense cannot be frozen: it begins anew"),
        ({"data.preparation": "scale"}, "--set data.preparation=standardize-channels"),
        ({"finetune.init_from": "nowhere"}, "there is no run at nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(
    base: Run, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    overrides = {**BASE, "finetune.init_from": str(base.path), **changes}
    with pytest.raises(UserError, match=message):
        training.train(RECIPE, data="demo", out=tmp_path / "run", overrides=overrides)
    assert not (tmp_path / "run").exists()


def trained_blocks(settings: Finetune, epoch: float) -> set[str]:
    frozen = frozen_layers(settings, NET, epoch)
    names = [name for name, layer in NET.named_modules() if list(layer.parameters(recurse=False))]
    return {name.partition("_")[0] for name in names if name not in frozen}


def test_unfreezing_goes_from_the_top_down() -> None:
    at_once = Finetune(freeze=("block*",), unfreeze="block2")
    assert trained_blocks(at_once, 0) == {"block2", "block3", "dense", "output"}
    gradual = Finetune(freeze=("block*",), unfreeze="block2", unfreeze_every_epochs=3)
    expected = {0: 0, 2: 0, 3: 1, 5: 1, 6: 2, 50: 2, math.inf: 2}
    for epoch, blocks in expected.items():
        trained = {"dense", "output"} | set(["block3", "block2"][:blocks])
        assert trained_blocks(gradual, epoch) == trained, epoch
    layer = Finetune(freeze=("*",), unfreeze="block3_conv2")
    assert "block3_conv1" in frozen_layers(layer, NET, 0)
    assert "block3_conv2" not in frozen_layers(layer, NET, 0)


def test_earlier_blocks_learn_slower(base: Run, tmp_path: Path) -> None:
    factors = rate_factors(Finetune(block_factor=0.5), NET)
    assert {name: factors[f"{name}.weight"] for name in ("block1_conv1", "block3_conv2_bn", "dense", "output")} == {
        "block1_conv1": 0.125, "block3_conv2_bn": 0.5, "dense": 1.0, "output": 1.0,
    }  # fmt: skip
    mlp = build_model(MLP(widths=(5, 5)), 3)
    assert list(rate_factors(Finetune(block_factor=0.5), mlp).values()) == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    steps = {}
    for factor in (1.0, 0.5):
        recipe = RECIPE.model_copy(
            update={"finetune": Finetune(block_factor=factor), "epochs": 1, "batch_size": 300}
        )
        job = training.prepare(recipe, "demo")
        before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
        training.train_step(job, *next(job.stream.from_step(0)), 0, 0.1)
        steps[factor] = {name: after - before[name] for name, after in job.model.state_dict().items()}
    for name, part in (("block1_conv1", 0.25), ("block2_conv2", 0.5), ("dense", 1.0), ("output", 1.0)):
        step, slower = steps[1.0][f"{name}.weight"], steps[0.5][f"{name}.weight"]
        torch.testing.assert_close(slower, part * step, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("block_factor", [0.3, 1.0], ids=["a rate for each block", "one rate for all"])
def test_resume_is_exact_and_does_not_need_the_base(base: Run, tmp_path: Path, block_factor: float) -> None:
    copied = Run(shutil.copytree(base.path, tmp_path / "base"))
    gradual = {
        "epochs": 4, "finetune.freeze": "block*", "finetune.unfreeze": "block1", "finetune.unfreeze_every_epochs": 1,
        "finetune.block_factor": block_factor, "schedule.name": "inverse-time", "schedule.decay_per_step": 0.05,
    }  # fmt: skip
    runs = []
    for name in ("whole", "cut"):
        overrides = {**BASE, **CALM, **gradual, "finetune.init_from": str(copied.path)}
        recipe = training.override(RECIPE, overrides)
        job = training.prepare(recipe, "demo")
        runs.append((job, training.start(job, tmp_path / name)))
    shutil.rmtree(copied.path)
    whole, cut = runs
    for _ in training.fit(*whole):
        pass
    for _ in range(4):  # each life ends after an epoch, the first one before any
        job, run = training.reopen(cut[1].path)
        events = training.fit(job, run)
        for event in events:
            if isinstance(event, EpochDone):
                break
        events.close()
    assert exact(Run(cut[1].path)) == exact(Run(whole[1].path))
    assert changed_layers(base.load_weights()[0], Run(cut[1].path).load_weights("last")[0]) > {"block1_conv1"}


def test_from_the_command_line(base: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "device.threads=1", "--set", "schedule.name=constant", "--set", "model.widths=[8,8]"]
    settings += ["--set", "model.dense=16", "--epochs", "1"]
    begun = ["train", "demo", "--data", "demo", *settings, "--init-from", str(base.path)]
    assert main([*begun, "--freeze", "blok*", "--out", str(tmp_path / "no")]) == 2
    assert "'blok*' is no layer or block of this network" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert main(["train", "demo", "--data", "demo", "--init-from", str(tmp_path / "no")]) == 2
    capsys.readouterr()
    assert main([*begun, "--freeze", "block1", "--freeze", "block2", "--out", str(tmp_path / "run")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "begins with the weights of" in shown
    assert "frozen" in shown
    run = Run(tmp_path / "run")
    assert run.recipe.finetune.freeze == ("block1", "block2")
    assert changed_layers(base.load_weights()[0], run.load_weights("last")[0]) <= {
        "dense",
        "dense_bn",
        "output",
    }


def test_a_transferred_run_is_judged_as_any(
    base: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(base, tmp_path / "run", finetune__freeze="block*")
    assert evaluate(run, split="validation").accuracy == run.metrics[-1]["validation_accuracy"]


def test_every_recipe_can_be_frozen_but_for_its_head() -> None:
    for recipe in RECIPES.values():
        model = build_model(recipe.model, 10)
        factors = rate_factors(Finetune(block_factor=0.5), model)
        assert list(factors.values())[-1] == 1.0
        assert min(factors.values()) < 1.0


CALM_NET = {
    "model.pool_dropout": [],
    "ema.decay": None,
    "augment.shift": 0,
    "augment.rotation": 0,
    "augment.flip": 0,
}


def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_BYTES", 0)


@pytest.mark.parametrize("changes", [{}, {"model.pool_dropout": [0.1, 0.1], "ema.decay": 0.9}])
def test_features_computed_once_give_the_same_training(
    base: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    # The caches' rounding is PyTorch's: with its kernels in training, too, the two differ least.
    same_rounding = {"device.winograd": False}
    settings = {
        **BASE,
        **CALM,
        **CALM_NET,
        **same_rounding,
        "epochs": 3,
        "finetune.freeze": "block*",
        **changes,
    }
    runs = []
    for name in ("once", "always"):
        with monkeypatch.context() as patch:
            if name == "always":
                without_cache(patch)
            runs.append(
                training.train(RECIPE, data="demo", out=tmp_path / name, overrides=settings, init_from=base)
            )
    once, always = runs
    for row, expected in zip(once.metrics, always.metrics, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-5)
        assert row["train_accuracy"] == expected["train_accuracy"]
    for name, tensor in always.load_weights("last")[0].items():
        torch.testing.assert_close(once.load_weights("last")[0][name], tensor, rtol=1e-4, atol=1e-6)
    frozen = {name for name in once.load_weights("last")[0] if name.startswith("block")}
    assert not changed_layers(
        {name: base.load_weights()[0][name] for name in frozen},
        {name: once.load_weights("last")[0][name] for name in frozen},
    )


def test_which_layers_are_computed_once(base: Run) -> None:
    def cached(**changes: Any) -> str | None:
        given = {name.replace("__", "."): value for name, value in changes.items()}
        job = training.prepare(training.override(RECIPE, {**BASE, **CALM_NET, **given}), "demo")
        layers = features.cacheable_layers(job)
        return list(dict(job.model.named_children()))[layers - 1] if layers else None

    assert cached() is None
    assert cached(finetune__freeze="block*") == "block2_pool"
    assert cached(finetune__freeze="*", finetune__unfreeze="block2") == "block1_pool"
    assert (
        cached(finetune__freeze="*", finetune__unfreeze="dense", model__pool_dropout=[0.1, 0.1])
        == "block2_dropout"
    )
    assert cached(finetune__freeze=["block1", "block2_conv2*"]) == "block1_pool"
    assert cached(finetune__freeze="block2") is None
    assert cached(finetune__freeze="block*", augment__flip=0.5) is None
    assert cached(finetune__freeze="block*", data__training_crops=[1.0]) is None
    gradual = {
        "finetune__freeze": "block*",
        "finetune__unfreeze": "block2",
        "finetune__unfreeze_every_epochs": 1,
    }
    assert cached(**gradual) == "block1_pool"


def test_features_are_kept_for_the_next_run(
    base: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "KEPT_AFTER_SECONDS", 0.0)
    settings = {**BASE, **CALM, **CALM_NET, "epochs": 1, "finetune.freeze": "block*"}

    def run(name: str) -> Run:
        return training.train(RECIPE, data="demo", out=tmp_path / name, overrides=settings, init_from=base)

    first = run("first")
    kept = sorted((tmp_path / "cache" / "cifarlab" / "features").glob("*.safetensors"))
    assert len(kept) == 2  # of training and of validation pictures
    monkeypatch.setattr(features, "_computed", None)  # nothing is computed again
    assert exact(run("second"))["metrics"] == exact(first)["metrics"]
    monkeypatch.undo()
    use_source(monkeypatch, tiny_source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1] + b"!")  # damaged: computed again
    assert exact(run("third"))["metrics"] == exact(first)["metrics"]


def test_a_training_on_kept_features_can_be_stopped_and_resumed(base: Run, tmp_path: Path) -> None:
    settings = {
        **BASE,
        **CALM,
        **CALM_NET,
        "epochs": 3,
        "finetune.freeze": "block*",
        "finetune.init_from": str(base.path),
    }
    whole = training.train(RECIPE, data="demo", out=tmp_path / "whole", overrides=settings)
    job = training.prepare(training.override(RECIPE, settings), "demo")
    run = training.start(job, tmp_path / "cut")
    stop = SimpleNamespace(signal_number=15, is_set=lambda: True)
    with pytest.raises(Interrupted, match="stopped after 0.00 of 3 epochs"):
        list(training.fit(job, run, stop))
    events = training.fit(*training.reopen(run.path))
    assert isinstance(next(events), features.FeaturesDone)
    next(event for event in events if isinstance(event, EpochDone))
    events.close()
    training.resume(run.path)
    assert exact(Run(run.path)) == exact(whole)


def test_the_plan_counts_what_is_computed_once(base: Run) -> None:
    recipe = training.override(RECIPE, {**BASE, **CALM_NET, "finetune.freeze": "block*"})
    job = training.prepare(recipe, "demo")
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    expected = estimate(job)
    assert expected.elapsed_seconds > expected.seconds_per_epoch * recipe.epochs
    assert not changed_layers(before, job.model.state_dict())


def test_kept_features_are_of_these_weights_and_pictures_alone() -> None:
    def name(pictures: int = 0, **changes: Any) -> str:
        given = {
            "finetune.freeze": "block*",
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        job = training.prepare(training.override(RECIPE, {**BASE, **CALM_NET, **given}), "demo")
        layers = features.cacheable_layers(job)
        return features._kept_file(job, layers, job.stream.images[pictures : pictures + 50], True).name

    assert name() == name(optimizer__learning_rate=0.1)
    others = [
        name(seed=1),
        name(pictures=50),
        name(data__preparation="scale"),
        name(device__precision="bfloat16"),
    ]
    assert len({name(), *others}) == 5


def test_what_is_kept_of_features_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(features, "MOST_KEPT_BYTES", 5_000)
    for age, name in enumerate(("oldest", "older", "new")):
        features._keep(tmp_path / f"{name}.safetensors", torch.zeros(500))
        for file in tmp_path.glob(f"{name}.*"):
            os.utime(file, (1_000 + age, 1_000 + age))
    assert features._load(tmp_path / "oldest.safetensors", torch.device("cpu")) is None
    assert features._load(tmp_path / "older.safetensors", torch.device("cpu")) is not None  # used now
    features._keep(tmp_path / "newest.safetensors", torch.zeros(500))
    assert {path.stem for path in tmp_path.iterdir()} == {"older", "newest"}


def test_arithmetic_of_frozen_layers_is_not_counted_as_trained(base: Run, tmp_path: Path) -> None:
    from cifarlab.cost import training_operations
    from cifarlab.models import describe_model

    changes = {**BASE, **CALM_NET, "finetune.freeze": "block*", "epochs": 2}
    frozen = training.train(RECIPE, data="demo", out=tmp_path / "frozen", overrides=changes)
    model = frozen.load_model()
    layers = {row["name"]: row for row in describe_model(model, tuple(frozen.data["input_shape"]))}
    costs = {name: row["multiply_adds"] for name, row in layers.items() if row["multiply_adds"]}
    head = {name: cost for name, cost in costs.items() if not name.startswith("block")}
    first = next(iter(head))
    seen = min(frozen.metrics[-1]["step"] * 32, 2 * frozen.data["n_train"])
    trained = sum(cost * (2 if name == first else 3) for name, cost in head.items()) * seen
    once = sum(cost for name, cost in costs.items() if name not in head)
    pictures = frozen.data["n_train"] + frozen.data["n_validation"]
    assert training_operations(frozen, model) == 2 * (trained + once * pictures)
    whole = sum(3 * cost for cost in costs.values()) - next(iter(costs.values()))
    seen = min(base.metrics[-1]["step"] * 32, len(base.metrics) * base.data["n_train"])
    assert training_operations(base, base.load_model()) == 2 * whole * seen

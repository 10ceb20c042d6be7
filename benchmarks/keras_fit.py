"""How fast the real training loop is, against Keras 3 on TensorFlow, and where a step's time goes.

    python3 -m venv /tmp/keras && /tmp/keras/bin/pip install tensorflow-cpu keras
    python benchmarks/keras_fit.py --keras-python /tmp/keras/bin/python [--recipes vgg3 vgg3-bn] [--pairs 7]

The two sides run in processes of their own, alive all the time, one at work while the other sleeps. They take turns, an
epoch each, and every ratio is of two neighbours in time. See benchmarks/README.md for what is and is not counted.
This file is run by both interpreters: at the top level it imports nothing that Keras's lacks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NAME_OF = {"float32": "", "bfloat16": "_bfloat16"}  # in the record's file name
PRECISIONS = tuple(NAME_OF)
WARM_UP_EPOCHS = 1
PROBED_STEPS = 10
CIFAR10_TRAINING_IMAGES = 50_000
NO_AUGMENTATION = {
    **{f"augment.{name}": 0.0 for name in ("shift", "rotation", "zoom", "flip")},
    "data.steps_per_epoch": "ceil",
}


# The side of cifarlab


def cifarlab_worker(settings: dict[str, Any]) -> None:
    """Train by the product's own loop, one epoch for each line on stdin, and answer each with a line of JSON."""
    from cifarlab.process import keep_freed_memory, prepare_environment

    prepare_environment()
    import torch

    keep_freed_memory()
    from cifarlab.job import prepare
    from cifarlab.recipe import override
    from cifarlab.recipes import get_recipe
    from cifarlab.training import EpochDone, fit, start

    overrides = {"data.validation": "none", "epochs": 10_000, **settings["overrides"]}
    job = prepare(override(get_recipe(settings["recipe"]), overrides), settings["data"], settings["data_dir"])
    whole_batches = job.steps_per_epoch * job.recipe.batch_size
    images = (
        whole_batches if isinstance(job.recipe.data.steps_per_epoch, int) else min(job.n_train, whole_batches)
    )
    with tempfile.TemporaryDirectory() as folder:
        events = fit(job, start(job, Path(folder) / "run"))

        def epoch() -> dict[str, float]:
            began = time.perf_counter()
            row = next(event for event in events if isinstance(event, EpochDone)).row
            whole_seconds = time.perf_counter() - began
            steps_seconds = images / row["images_per_second"]
            return {
                "images_per_second": row["images_per_second"],
                "steps": job.steps_per_epoch,
                "between_epochs_seconds": max(0.0, whole_seconds - steps_seconds),
            }

        for _ in range(WARM_UP_EPOCHS):
            epoch()
        versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        answer({"ready": True, "images": images, "versions": versions})
        for line in sys.stdin:
            answer(step_shares(job) if line.strip() == "profile" else epoch())


def step_shares(job: Any, blocks: int = 6, steps: int = 6) -> dict[str, float]:
    """Milliseconds of a step by kind of work: the product's `train_step` on its own batches, under torch.profiler.

    Blocks of steps without the profiler alternate with those: what it makes longer is Python and bookkeeping, which is
    what a step without it takes beside the rest.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from cifarlab.training import train_step

    label_layers(job.model)
    batches = job.stream.from_step(0)

    def step(index: int) -> None:
        with record_function("work: data and augmentation"):
            images, labels = next(batches)
        train_step(job, images, labels, index, job.recipe.optimizer.learning_rate)

    plain: list[float] = []
    shares: list[dict[str, float]] = []
    step(0)
    for _ in range(blocks):
        began = time.perf_counter()
        for index in range(steps):
            step(index)
        plain.append(1e3 * (time.perf_counter() - began) / steps)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for index in range(steps):
                step(index)
        microseconds: dict[str, float] = defaultdict(float)
        for event in profiler.events():
            if event.device_type == torch.profiler.DeviceType.CPU:
                microseconds[kind_of_work(event)] += event.self_cpu_time_total
        shares.append({kind: spent / steps / 1e3 for kind, spent in microseconds.items()})
    kinds = {kind: statistics.median(block[kind] for block in shares) for kind in shares[0]}
    kinds.pop(REST, None)
    kinds[REST] = max(0.0, statistics.median(plain) - sum(kinds.values()))
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def label_layers(model: Any) -> None:
    """Name each layer's forward pass in the profile by its class."""
    from torch.profiler import record_function

    for layer in model.modules():
        if not list(layer.children()):
            name = f"layer: {type(layer).__name__}"

            def forward(*values: Any, inner: Any = layer.forward, name: str = name) -> Any:
                with record_function(name):
                    return inner(*values)

            layer.forward = forward


REST = "loss, gradients' bookkeeping, Python"
KINDS = {  # the first that a profiler event, or the nearest event around it, contains
    "data and augmentation": ("work: data",),
    "optimiser": ("Optimizer.",),
    # Ours are called as PyTorch's are, and have in them the ReLU and the pool that follow, or the ELU before the norm.
    "convolutions, backward": ("ConvolutionBackward",),
    "convolutions, forward": ("layer: Conv2d", "_Convolution"),
    "batch normalisation": ("layer: BatchNorm", "layer: BiasedBatchNorm", "_BatchNorm", "BatchNormBackward"),
    "ELU": ("layer: ELU", "_Elu", "EluBackward"),
    "ReLU": ("layer: ReLU", "ReluBackward", "ThresholdBackward"),
    "max-pooling": ("layer: MaxPool", "MaxPool2DWithIndicesBackward", "_MaxPool"),
    "dropout": ("layer: Dropout", "_Dropout"),
    "dense layers": ("layer: Linear", "layer: Flatten", "_Dense", "AddmmBackward"),
}


def kind_of_work(event: Any) -> str:
    node = event
    while node is not None:
        for kind, marks in KINDS.items():
            if any(mark in node.name for mark in marks):
                return kind
        node = node.cpu_parent
    return REST


# The side of Keras


def keras_worker(settings: dict[str, Any]) -> None:
    """`model.fit` as a user writes it, on float32 pictures in memory; a callback holds it between epochs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    if settings["precision"] == "bfloat16":
        keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    images = rng.integers(0, 256, (settings["images"], 32, 32, 3)).astype("float32") / 255
    labels = keras.utils.to_categorical(rng.integers(0, 10, settings["images"]), 10)

    class Turns(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == WARM_UP_EPOCHS:
                answer(
                    {"ready": True, "versions": {"keras": keras.__version__, "tensorflow": tf.__version__}}
                )
            if epoch >= WARM_UP_EPOCHS and not sys.stdin.readline():
                self.model.stop_training = True
                raise SystemExit
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds = time.perf_counter() - self.began
            if epoch >= WARM_UP_EPOCHS:
                answer({"images_per_second": len(images) / seconds})

    model = keras_network(settings)
    model.compile(
        optimizer=keras_optimizer(settings["optimizer"]),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=settings["jit_compile"],
    )
    size = settings["batch_size"]
    model.fit(images, labels, batch_size=size, epochs=10_000, verbose=0, callbacks=[Turns()])


def keras_network(settings: dict[str, Any]) -> Any:
    """The recipe's network from the file that cifarlab wrote for Keras, in the precision asked for."""
    import keras

    config = keras.models.load_model(settings["model_file"]).get_config()
    for layer in config["layers"][1:-1]:  # all but the input and the softmax
        if settings["precision"] == "bfloat16":
            layer["config"]["dtype"] = "mixed_bfloat16"
    model = keras.Sequential.from_config(config)
    model.build((None, 32, 32, 3))
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    if settings["l2_layers"] == "hidden":
        kernels = kernels[:-1]
    elif settings["l2_layers"] == "convolutions":
        kernels = [layer for layer in kernels if isinstance(layer, keras.layers.Conv2D)]
    for layer in kernels:
        if settings["l2"]:
            layer.kernel.regularizer = keras.regularizers.l2(settings["l2"])
    return model


def keras_optimizer(spec: dict[str, Any]) -> Any:
    import keras

    names = ("learning_rate", "momentum", "nesterov", "rho", "epsilon", "beta_1", "beta_2")
    kinds = {"sgd": keras.optimizers.SGD, "rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam}
    return kinds[spec["name"]](**{name: spec[name] for name in names if name in spec})


# Taking turns


class Worker:
    """A process that waits for a line and answers it with a line of JSON."""

    def __init__(self, python: str, kind: str, settings: dict[str, Any]) -> None:
        command = [python, __file__, "--worker", kind, "--settings", json.dumps(settings)]
        self.kind = kind
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process; no pipe, which may fill)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.about = self._read()

    def ask(self, line: str = "epoch") -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def turn(self) -> dict[str, Any]:
        """One epoch that counts, after one that does not: while it slept, its pages may have left the memory."""
        self.ask()
        return self.ask()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        raise SystemExit(f"the {self.kind} side ended:\n{self.errors.read()[-2000:]}")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def answer(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Turns of every side, `pairs` times, in an order that is reversed from round to round."""
    from cifarlab.recipes import get_recipe

    recipe = get_recipe(name)
    with tempfile.TemporaryDirectory() as folder:
        model_file = Path(folder) / "network.keras"
        write_for_keras(recipe, model_file)
        return take_turns(recipe, model_file, options)


def recipe_names(given: list[str]) -> list[str]:
    """`all`: the published recipes that Keras can have: not those of frozen or of GPU-only networks."""
    from cifarlab.recipes import RECIPES

    if given != ["all"]:
        return given
    return [r.name for r in RECIPES.values() if r.published and r.model.name in ("vgg", "mlp", "alexnet")]


def write_for_keras(recipe: Any, path: Path) -> None:
    from cifarlab.keras_io import save_keras
    from cifarlab.models import build_model

    save_keras(path, build_model(recipe.model, 10, (3, 32, 32)), input_shape=(3, 32, 32))


def take_turns(recipe: Any, model_file: Path, options: argparse.Namespace) -> dict[str, Any]:
    name = recipe.name
    precision: dict[str, Any] = {"device.precision": options.precision}
    plain = {"recipe": name, "data": options.data, "data_dir": options.data_dir}
    plainly = NO_AUGMENTATION | precision
    steps = options.steps or steps_of_a_turn({**plain, "overrides": plainly}, recipe, options.turn_seconds)
    if steps:
        plainly = plainly | {"data.steps_per_epoch": steps}
    sides = {"cifarlab": Worker(sys.executable, "cifarlab", {**plain, "overrides": plainly})}
    if options.augmented and not recipe.augment.changes_nothing:
        sides["cifarlab, augmented"] = Worker(sys.executable, "cifarlab", {**plain, "overrides": precision})
    for keras_precision, jit in itertools.product(options.keras_precision, options.keras_jit):
        settings = {
            "precision": keras_precision,
            "model_file": str(model_file),
            "l2": recipe.regularization.l2,
            "l2_layers": recipe.regularization.l2_layers,
            "optimizer": recipe.optimizer.model_dump(mode="json"),
            "batch_size": recipe.batch_size,
            "images": sides["cifarlab"].about["images"],
            "jit_compile": {"auto": "auto", "on": True, "off": False}[jit],
        }
        sides[f"keras, {keras_precision}, jit {jit}"] = Worker(options.keras_python, "keras", settings)
    rounds = []
    for index in range(options.pairs):
        order = list(sides) if index % 2 == 0 else list(reversed(sides))
        rounds.append({side: sides[side].turn() for side in order})
        print(f"  {name}, round {index + 1} of {options.pairs}: " + speeds_text(rounds[-1]), file=sys.stderr)
    shares = {side: sides[side].ask("profile") for side in sides if side.startswith("cifarlab")}
    versions = {key: value for worker in sides.values() for key, value in worker.about["versions"].items()}
    for worker in sides.values():
        worker.close()
    return summary(name, rounds, shares, versions, recipe.batch_size)


def steps_of_a_turn(settings: dict[str, Any], recipe: Any, seconds: float | None) -> int | None:
    """As many as take about so long on our side: what an epoch costs beside its steps has to be small on both."""
    if seconds is None:
        return None
    few = {**settings, "overrides": settings["overrides"] | {"data.steps_per_epoch": PROBED_STEPS}}
    probe = Worker(sys.executable, "cifarlab", few)
    try:
        steps_a_second = probe.ask()["images_per_second"] / recipe.batch_size
    finally:
        probe.close()
    return max(PROBED_STEPS, round(seconds * steps_a_second))


def speeds_text(one_round: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{side} {one_round[side]['images_per_second']:.0f}" for side in sorted(one_round))


def summary(
    name: str,
    rounds: list[dict[str, dict[str, float]]],
    shares: dict[str, dict[str, float]],
    versions: dict[str, Any],
    batch_size: int,
) -> dict[str, Any]:
    """Medians, and the ratios to whichever of Keras's settings was faster."""
    speeds = {side: [turn[side]["images_per_second"] for turn in rounds] for side in rounds[0]}
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    best_keras = max((side for side in medians if side.startswith("keras")), key=lambda side: medians[side])
    ratios = {
        side: sorted(ours / keras for ours, keras in zip(speeds[side], speeds[best_keras], strict=True))
        for side in shares
    }
    between = statistics.median(turn["cifarlab"]["between_epochs_seconds"] for turn in rounds)
    epoch_seconds = CIFAR10_TRAINING_IMAGES / medians["cifarlab"]
    return {
        "recipe": name,
        "batch_size": batch_size,
        "images_per_second": speeds,
        "median_images_per_second": medians,
        "keras_side": best_keras,
        "ratios": ratios,
        "median_ratio": {side: statistics.median(values) for side, values in ratios.items()},
        "step_milliseconds": shares,
        "saving_and_logging_seconds_per_epoch": between,
        "saving_and_logging_share": between / (between + epoch_seconds),
        "versions": versions,
    }


# The table and the record


def print_speeds(records: list[dict[str, Any]]) -> None:
    print(f"{'recipe':22s}{'images/s':>10s}{'Keras':>8s}{'ratio':>7s}   from - to    Keras's setting")
    for record in records:
        for side, ratios in record["ratios"].items():
            label = record["recipe"] + (" + augmentation" if side.endswith("augmented") else "")
            ours = record["median_images_per_second"][side]
            keras = record["median_images_per_second"][record["keras_side"]]
            spread = f"{ratios[0]:.2f} - {ratios[-1]:.2f}"
            ratio = record["median_ratio"][side]
            print(f"{label:22s}{ours:10.0f}{keras:8.0f}{ratio:7.2f}   {spread}  {record['keras_side'][7:]}")
    mean = statistics.geometric_mean(record["median_ratio"]["cifarlab"] for record in records)
    print(f"geometric mean of the ratios of {len(records)} recipes: {mean:.2f}")


def print_shares(records: list[dict[str, Any]]) -> None:
    columns = [
        (record["recipe"] + (" +aug." if side.endswith("augmented") else ""), shares)
        for record in records
        for side, shares in record["step_milliseconds"].items()
    ]
    print("\nwhere a step goes, %" + " " * 17 + "".join(f"{title:>14s}" for title, _ in columns))
    kinds = [*KINDS, REST]
    for kind in sorted(kinds, key=lambda kind: -columns[0][1].get(kind, 0.0)):
        cells = [f"{100 * shares.get(kind, 0.0) / sum(shares.values()):14.1f}" for _, shares in columns]
        print(f"{kind:37s}" + "".join(cells))
    print(f"{'milliseconds':37s}" + "".join(f"{sum(s.values()):14.1f}" for _, s in columns))
    for record in records:
        share = 100 * record["saving_and_logging_share"]
        seconds = record["saving_and_logging_seconds_per_epoch"]
        print(
            f"saving and logging, {record['recipe']}: {seconds:.2f} s an epoch, {share:.2f} % with 50,000 pictures"
        )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keras-python", help="an interpreter that has keras and tensorflow")
    parser.add_argument("--keras-jit", nargs="+", choices=["auto", "on", "off"], default=["auto", "off"])
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of our side")
    parser.add_argument(
        "--keras-precision",
        nargs="+",
        choices=PRECISIONS,
        help="of Keras's sides; default: ours; bfloat16 is mixed",
    )
    parser.add_argument(
        "--recipes", nargs="+", default=["vgg3", "vgg3-bn"], help="published ones; all: every one"
    )
    parser.add_argument(
        "--augmented", action="store_true", help="ours with the recipe's augmentation as well"
    )
    parser.add_argument("--steps", type=int, help="of an epoch, for both; default: all of the data")
    parser.add_argument(
        "--turn-seconds",
        type=float,
        help="of an epoch of ours, as many steps as that takes; beaten by --steps",
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument(
        "--data", default="demo", help="demo has 5,000 pictures an epoch; the shape is CIFAR-10's"
    )
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, help="the record; default results/keras_fit[_bfloat16].json")
    parser.add_argument("--worker", choices=["cifarlab", "keras"], help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.keras_python and not options.worker:
        parser.error("--keras-python is needed: an interpreter that has keras and tensorflow")
    options.keras_precision = options.keras_precision or [options.precision]
    options.out = options.out or RESULTS / f"keras_fit{NAME_OF[options.precision]}.json"
    return options


def main() -> None:
    options = parsed_options()
    if options.worker:
        (cifarlab_worker if options.worker == "cifarlab" else keras_worker)(options.settings)
        return
    from cifarlab.process import available_cores

    load_before, records = os.getloadavg(), []
    for name in recipe_names(options.recipes):
        records.append(compare(name, options))
        write_record(options, records, load_before, available_cores())  # what there is, should it be cut off
    print(f"{processor()}, {available_cores()} cores; load {load_before[0]:.1f}; {records[0]['versions']}")
    print_speeds(records)
    print_shares(records)
    print(f"record: {options.out}")


def write_record(
    options: argparse.Namespace,
    records: list[dict[str, Any]],
    load_before: tuple[float, float, float],
    cores: int,
) -> None:
    document = {
        "measured_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017 (3.10 reads it too)
        "processor": processor(),
        "precision": options.precision,
        "cores": cores,
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "data": options.data,
        "turn_seconds": options.turn_seconds,
        "recipes": records,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

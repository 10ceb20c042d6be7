"""T5's cnn4 trained by Keras itself, to see whether a difference from the published figure is ours or the figure's.

    python3 -m venv /tmp/keras && /tmp/keras/bin/pip install tensorflow-cpu keras
    python benchmarks/keras_cnn4.py --keras-python /tmp/keras/bin/python [--seeds 3] [--data-dir DIR]

The network, preparation, batches, optimiser and validation split of the write-up, by `model.fit` as a user writes it.
Compare with `cifarlab train cnn4 --seeds 3`. This file is run by both interpreters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORD = Path(__file__).parent / "results" / "keras_cnn4.json"


def train_in_keras(arrays: Path, seed: int, threads: int) -> None:
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(seed)
    content = np.load(arrays)
    convolution = {"kernel_size": 3, "activation": "relu"}
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(32, **convolution),
            layers.Conv2D(32, **convolution),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, **convolution),
            layers.Conv2D(64, **convolution),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    began = time.perf_counter()
    history = model.fit(
        content["images"].astype("float32") / 255,
        content["labels"],
        batch_size=32,
        epochs=10,
        validation_split=0.25,
        verbose=0,
    ).history
    print(
        json.dumps(
            {
                "seed": seed,
                "train_accuracy": history["accuracy"],
                "validation_accuracy": history["val_accuracy"],
                "elapsed_seconds": time.perf_counter() - began,
                "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keras-python", help="an interpreter that has keras and tensorflow")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("ARRAYS", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train_in_keras(Path(options.worker[0]), int(options.worker[1]), options.threads)
        return
    import numpy as np

    from cifarlab.data import open_source

    train = open_source("cifar10", options.data_dir).load("train")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "train.npz"
        np.savez(arrays, images=train.images, labels=train.labels)
        for seed in range(options.seeds):
            command = [options.keras_python, __file__, "--worker", str(arrays), str(seed)]
            command += ["--threads", str(options.threads)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs.append(json.loads(answer.splitlines()[-1]))
            print(f"seed {seed}: {runs[-1]['validation_accuracy'][-1]:.4f}", file=sys.stderr)
            RECORD.write_text(json.dumps({"recipe": "cnn4", "runs": runs}, indent=1) + "\n")
    for name in ("train_accuracy", "validation_accuracy"):
        last = [run[name][-1] for run in runs]
        spread = f" (sd {statistics.stdev(last):.4f}, n={len(last)})" if len(last) > 1 else ""
        print(f"{name} of the last epoch, Keras: {statistics.mean(last):.4f}{spread}")


if __name__ == "__main__":
    main()

"""How fast `cifarlab predict` is: 10,000 picture files against the network's own rate, one picture cold, and `--help`.

python benchmarks/prediction.py runs/fast94

The network's own rate is that of its answers to the same pictures, already in memory, in batches, by the same number of
threads. The command is timed whole, from its start to its end, start of Python and PyTorch included. The two alternate.
Wanted: 70 % of the network's own rate, one picture under 2.5 s, `--help` under 0.3 s.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cifarlab import Run, text
from cifarlab.data import open_source
from cifarlab.process import available_cores
from cifarlab.training import predict_logits

RECORD = Path(__file__).parent / "results" / "prediction.json"
WANTED_SHARE, WANTED_COLD_SECONDS, WANTED_HELP_SECONDS = 0.7, 2.5, 0.3
COMMAND = (sys.executable, "-c", "import sys; from cifarlab.cli import main; sys.exit(main())")


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def command(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run([*COMMAND, *arguments], check=True, capture_output=True)


def write_pictures(folder: Path, images: np.ndarray, format: str) -> None:
    """PNG files of 32 x 32 pixels, or JPEG files of 256 x 256, as a small photograph has."""
    for number, image in enumerate(images):
        picture = Image.fromarray(image)
        if format == "jpeg":
            picture.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:05}.jpg", quality=90)
        else:
            picture.save(folder / f"{number:05}.png")


def measure(run: Run, n: int, rounds: int, format: str) -> dict:
    images = open_source("cifar10").load("train").images[:n]
    model, preparation = run.load_model(), run.load_preparation()
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "pictures", Path(temporary) / "found.csv"
        folder.mkdir()
        write_pictures(folder, images, format)
        first = str(next(folder.iterdir()))
        predict_logits(model, preparation, tensor[: min(n, 1000)])
        network, files = [], []
        for _ in range(rounds):
            network.append(seconds_of(lambda: predict_logits(model, preparation, tensor)))
            files.append(seconds_of(command("predict", str(run.path), str(folder), "--csv", str(out))))
        cold = [seconds_of(command("predict", str(run.path), first)) for _ in range(5)]
        helps = [seconds_of(command("--help")) for _ in range(5)]
    return {
        "run": run.path.name,
        "recipe": run.recipe.name,
        "pictures": n,
        "format": format,
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "network_images_per_second": [n / seconds for seconds in network],
        "files_images_per_second": [n / seconds for seconds in files],
        "share": statistics.median(a / b for a, b in zip(network, files, strict=True)),
        "cold_seconds": statistics.median(cold),
        "help_seconds": statistics.median(helps),
    }


def print_table(found: dict) -> None:
    network, files = (statistics.median(found[f"{what}_images_per_second"]) for what in ("network", "files"))
    rows = [
        [f"{found['pictures']:,} {found['format']} files, images/s", f"{files:,.0f}", ""],
        ["the network alone, images/s", f"{network:,.0f}", ""],
        ["share of the network's rate", text.percent(found["share"]), text.percent(WANTED_SHARE)],
        ["one picture, cold", f"{found['cold_seconds']:.2f} s", f"{WANTED_COLD_SECONDS} s"],
        ["--help", f"{found['help_seconds']:.2f} s", f"{WANTED_HELP_SECONDS} s"],
    ]
    print(text.markdown_table([found["recipe"], "measured", "wanted"], rows))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", type=Path, help="a run on CIFAR-10")
    options.add_argument("--pictures", type=int, default=10_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--format", choices=("png", "jpeg"), default="png")
    options.add_argument("--threads", type=int, default=available_cores())
    options.add_argument("--record", type=Path, default=RECORD)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of the commands
    found = measure(Run(given.run), given.pictures, given.rounds, given.format)
    print_table(found)
    given.record.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

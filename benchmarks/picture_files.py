"""CIFAR-10 written out as 60,000 PNG files: how fast they are read, and that training on them is training on CIFAR-10.

    python benchmarks/picture_files.py [--pictures N] [--epochs N] [--recipe NAME] [--folder DIR] [--data-dir DIR]
                                       [--threads N] [--json FILE]

Speed: seconds for all files, decoded, shuffled and as normalised float batches of 512, in fresh processes one after the
other, files in the operating system's page cache: Pillow in a loop, PyTorch's DataLoader with two workers (its second
epoch too, which decodes again), and ours: the first time, when everything is decoded into the cache; a start from that
cache; an epoch of batches after either, and a further one. Decoding uses all cores this process may use. Each is the
median of three times, and the load of the machine before and after is recorded.

Accuracy, with --recipe: one training on the official files; one on the PNG files in the same order and with the same
validation pictures, whose weights must be equal to the last bit; and one on the folder as anybody would train on it,
in the order of its classes, near duplicates kept on one side of the validation cut.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cifarlab.data import Source, Split, open_source
from cifarlab.data.decoded import decode
from cifarlab.data.listing import list_pictures
from cifarlab.data.loader import BatchStream, on_device
from cifarlab.environment import describe_environment
from cifarlab.files import write_atomic
from cifarlab.preparation import Preparation
from cifarlab.recipe import Augment, Device, override
from cifarlab.recipes import get_recipe

BATCH = 512
REPETITIONS = 3
SPLITS = ("train", "test")


def write_files(folder: Path, data_dir: Path | None, pictures: int) -> None:
    source = open_source("cifar10", data_dir)
    for split in SPLITS:
        content = source.load(split)
        share = len(content.labels) * pictures // 60_000
        for name in source.classes:
            (folder / split / name).mkdir(parents=True)
        for index in range(share):
            name = source.classes[content.labels[index]]
            Image.fromarray(content.images[index]).save(folder / split / name / f"{index:05d}.png")


# --- speed: each in a process of its own ---


def read_with_pillow(path: Path) -> torch.Tensor:
    """uint8 (3, 32, 32)."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class Files(Dataset[torch.Tensor]):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return read_with_pillow(self.paths[index])


def pillow_loop(folder: Path) -> dict[str, float]:
    paths = sorted(folder.rglob("*.png"))
    order = torch.randperm(len(paths)).tolist()
    began = time.perf_counter()
    for first in range(0, len(paths), BATCH):
        batch = torch.stack([read_with_pillow(paths[index]) for index in order[first : first + BATCH]])
        batch.float().div_(255.0)
    return {"epoch": time.perf_counter() - began}


def data_loader(folder: Path) -> dict[str, float]:
    files = Files(sorted(folder.rglob("*.png")))
    loader = DataLoader(files, batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        for batch in loader:
            batch.float().div_(255.0)
        seconds.append(time.perf_counter() - began)
    return {"first epoch": seconds[0], "second epoch": seconds[1]}


def ours(folder: Path) -> dict[str, float]:
    """Opening (decoding, or the cache alone where it is there), and two epochs of batches."""
    began = time.perf_counter()
    source = open_source(folder)
    splits = [source.load(split) for split in source.splits]
    opened = time.perf_counter() - began
    pictures = np.concatenate([split.images[:] for split in splits])
    stream = BatchStream(
        images=on_device(pictures, torch.device("cpu")),
        labels=torch.from_numpy(np.concatenate([split.labels for split in splits])),
        batch_size=BATCH,
        seed=0,
        augmentation=Augment(),
        preparation=Preparation(32, 32, (0.0,) * 3, (255.0,) * 3),  # type: ignore[arg-type]
    )
    batches, seconds = stream.from_step(0), []
    for _ in range(2):
        began = time.perf_counter()
        for _ in islice(batches, stream.batches_per_pass):
            pass
        seconds.append(time.perf_counter() - began)
    return {"open": opened, "epoch": seconds[0], "further epoch": seconds[1]}


WAYS = {"pillow": pillow_loop, "loader": data_loader, "ours": ours}


def measure(way: str, folder: Path, cache: Path, threads: int) -> dict[str, float]:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def speed(folder: Path, threads: int) -> dict[str, Any]:
    """Median seconds by what is done, those of each repetition, and how busy the machine was (1, 5 and 15 minutes)."""
    sum(len(path.read_bytes()) for path in folder.rglob("*.png"))  # all of them in the page cache
    before = os.getloadavg()
    each = [_repetition(folder, threads) for _ in range(REPETITIONS)]
    return {
        "seconds": {name: median(seconds[name] for seconds in each) for name in each[0]},
        "repetitions": each,
        "load_average_before": before,
        "load_average_after": os.getloadavg(),
    }


def _repetition(folder: Path, threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        pillow, loader = (measure(way, folder, Path(cache), threads) for way in ("pillow", "loader"))
        first, again = (measure("ours", folder, Path(cache), threads) for _ in range(2))
    return {
        "Pillow in a loop, an epoch": pillow["epoch"],
        "DataLoader with two workers, first epoch": loader["first epoch"],
        "DataLoader with two workers, second epoch": loader["second epoch"],
        "ours: decoding into the cache, once": first["open"],
        "ours: first time, decoding and an epoch": first["open"] + first["epoch"],
        "ours: start from the cache": again["open"],
        "ours: start from the cache and an epoch": again["open"] + again["epoch"],
        "ours: a further epoch": again["further epoch"],
    }


# --- accuracy ---


def in_official_order(folder: Path, official: Source) -> Source:
    """The PNG files as a source that differs from the official one in nothing but where the pixels come from."""
    listing = list_pictures(folder)
    pixels = decode(listing, 32, "squash").pixels
    labels = np.array([entry.label for entry in listing.entries], np.int64)
    stems = np.array([int(Path(entry.name).stem) for entry in listing.entries])

    def read(split: str) -> Split:
        places = np.flatnonzero([entry.split == split for entry in listing.entries])
        places = places[np.argsort(stems[places])]
        return Split(pixels[places], labels[places])

    return replace(official, location=str(folder), read=read)


def accuracy(
    folder: Path, data_dir: Path | None, recipe: str, epochs: int, pictures: int
) -> dict[str, dict[str, Any]]:
    from cifarlab import evaluate, train

    settings = override(get_recipe(recipe), {"epochs": epochs, "data.validation": "stratified"})
    whole = open_source("cifar10", data_dir)

    def some(split: str) -> Split:
        content = whole.load(split)  # type: ignore[arg-type]
        share = len(content.labels) * pictures // 60_000
        return Split(content.images[:share], content.labels[:share])

    official = replace(whole, read=some)
    sources = {
        "official files": official,
        "PNG files in the same order": in_official_order(folder, official),
        "the folder as it is": open_source(folder),
    }
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for number, (name, source) in enumerate(sources.items()):
            run = train(settings, data=source, out=Path(runs) / str(number))
            row = run.metrics[-1]
            found[name] = {
                "weights": run.weights_checksum("last")[:12],
                "validation_loss": row["validation_loss"],
                "validation_accuracy": row["validation_accuracy"],
                "test_accuracy": evaluate(run, split="test", data=source).accuracy,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--recipe", help="train it three times; without, speed alone")
    parser.add_argument("--folder", type=Path, help="where the files are already: train/CLASS/00000.png ...")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(WAYS[options.way](options.folder)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made) / "cifar10-files"
        if options.folder is None:
            write_files(folder, options.data_dir, options.pictures)
        n = sum(1 for _ in folder.rglob("*.png"))
        record: dict[str, Any] = {
            "environment": describe_environment(Device(), torch.device("cpu")),
            "pictures": n,
            "threads": options.threads,
            **speed(folder, options.threads),
        }
        print(f"{n:,} files, {options.threads} threads")
        for name, value in record["seconds"].items():
            print(f"{name:45} {value:8.2f} s  {n / value:10,.0f} pictures/s")
        if options.recipe:
            os.environ["XDG_CACHE_HOME"] = str(Path(made) / "cache")
            found = accuracy(folder, options.data_dir, options.recipe, options.epochs, n)
            record |= {"recipe": options.recipe, "epochs": options.epochs, "accuracy": found}
            for name, row in found.items():
                print(f"{name:30} {row}")
    if options.json:
        write_atomic(options.json, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

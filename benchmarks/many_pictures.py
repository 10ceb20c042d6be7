"""A million picture files, and a set larger than the memory that a training may use: seconds and memory of each part.

    python benchmarks/many_pictures.py [--pictures N] [--large N] [--size PIXELS] [--limit-mib N] [--work DIR]
                                       [--json FILE]

Every part is a process of its own. Pictures are drawn at random, no two alike, 32x32, PNG and JPEG.

Many: --pictures of them in ten class folders of a train and a test split, surveyed the first time (listed, decoded into
the cache, duplicates looked for) and a second time, then trained on for STEPS steps of a small network with validation.

Larger than memory: the first --large of them, decoded at --size pixels a side, then one whole epoch over them in a
process whose private memory the kernel limits to --limit-mib (RLIMIT_DATA, which counts everything the process writes
to, with its stacks and what its libraries reserve, and no memory-mapped file). `memory` in the record is the largest
resident memory; `private` is the part of it that is no file's, sampled; the rest is the page cache's, which the system
takes back whenever it wants it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES, TEST_PART, JPEG_PART = 10, 20, 7  # every twentieth is of the test split, every seventh a JPEG
AT_ONCE = 1_000
STEPS = 200


def draw(folder: Path, first: int, last: int) -> None:
    generator = np.random.default_rng(first)
    coarse = generator.integers(0, 200, (last - first, 8, 8, 3), np.uint8)
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)
    fine += generator.integers(0, 24, fine.shape, np.uint8)
    for number, pixels in zip(range(first, last), fine, strict=True):
        pixels[:, :, 0] = pixels[:, :, 0] // 2 + 12 * (number % CLASSES)  # what there is to learn
        split = "test" if number // CLASSES % TEST_PART == 0 else "train"
        stem = f"{folder}/{split}/class-{number % CLASSES}/{number:07d}"
        if number // CLASSES % JPEG_PART == 0:
            Image.fromarray(pixels).save(f"{stem}.jpg", quality=85)
        else:
            with open(f"{stem}.png", "xb", buffering=0) as file:
                file.write(png(pixels))


def png(pixels: np.ndarray) -> bytes:
    """Of uint8 (H, W, 3), without filters."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">2L5B", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows, 1), b"IEND")
    framed = (struct.pack(">L", len(c) - 4) + c + struct.pack(">L", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def make(folder: Path, pictures: int) -> dict[str, Any]:
    for split in ("train", "test"):
        for number in range(CLASSES):
            (folder / split / f"class-{number}").mkdir(parents=True)
    for first in range(0, pictures, AT_ONCE):
        draw(folder, first, min(first + AT_ONCE, pictures))
    return {}


def look(folder: Path, _: int) -> dict[str, Any]:
    """What `cifarlab data` does."""
    from cifarlab.data.decoded import decode
    from cifarlab.data.listing import list_pictures
    from cifarlab.data.survey import survey

    began = time.perf_counter()
    listing = list_pictures(folder)
    listed = time.perf_counter()
    decoded = decode(listing, 32, "squash")
    known = time.perf_counter()
    found = survey(listing, decoded)
    return {
        "list": listed - began,
        "decode, or open the cache": known - listed,
        "survey": time.perf_counter() - known,
        "unreadable": len(found.unreadable),
        "near_duplicates": found.near_duplicates.pictures,
    }


def decode_large(folder: Path, size: int) -> dict[str, Any]:
    from cifarlab.data import open_source

    source = open_source(folder, size_pixels=size)
    return {"decoded_bytes": sum(source.load(split).images.nbytes for split in source.splits)}


def learn(folder: Path, size: int, steps: int | str) -> dict[str, Any]:
    from cifarlab import train
    from cifarlab.data import open_source
    from cifarlab.models.specs import MLP
    from cifarlab.recipe import SGD, Data, Device, Input, Recipe

    recipe = Recipe(
        name="many",
        source="this benchmark",
        network="flatten D32 out",
        model=MLP(widths=(32,)),
        data=Data(steps_per_epoch=steps),
        input=Input(size=size),
        optimizer=SGD(learning_rate=0.01),
        device=Device(threads=1),
        batch_size=128,
        epochs=1,
    )
    began = time.perf_counter()
    source = open_source(folder, size_pixels=size)
    opened = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as runs:
        run = train(recipe, data=source, out=Path(runs) / "run")
        row = run.metrics[-1]
    images = type(source.load("train").images).__name__
    return {"open": opened, "images": images, **{key: row[key] for key in ("step", "validation_accuracy")}}


WAYS = {
    "make": make,
    "look": look,
    "train": lambda folder, size: learn(folder, size, STEPS),
    "decode": decode_large,
    "train whole": lambda folder, size: learn(folder, size, "ceil"),
}


class PrivateMemory:
    """The most that was resident and no file's, looked at twenty times a second."""

    def __init__(self) -> None:
        self.most_bytes, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.most_bytes = max(self.most_bytes, int(line.split()[1]) * 1024)

    def stop(self) -> int:
        self.over.set()
        self.thread.join()
        return self.most_bytes


def work(way: str, folder: Path, number: int, limit_bytes: int) -> None:
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    private, began = PrivateMemory(), time.perf_counter()
    found = WAYS[way](folder, number)
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(
        json.dumps(
            {
                "elapsed_seconds": time.perf_counter() - began,
                "cpu_seconds": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
                "memory_bytes": own.ru_maxrss * 1024,
                "private_bytes": private.stop(),
                **found,
            }
        )
    )


def measure(cache: Path, way: str, folder: Path, number: int, limit_bytes: int = 0) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, "--work", str(folder), "--number", str(number)]
    command += ["--limit-bytes", str(limit_bytes)]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    memory = f"{found['memory_bytes'] / 1e6:7,.0f} MB, {found['private_bytes'] / 1e6:7,.0f} private"
    print(
        f"{way:12} {found['elapsed_seconds']:8.1f} s  cpu {found['cpu_seconds']:8.1f} s  {memory}", flush=True
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--limit-mib", type=int, default=640)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "many-pictures")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--limit-bytes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options.way, options.work, options.number, options.limit_bytes)
        return
    many, large, cache = (options.work / name for name in ("many", "large", "cache"))
    options.work.mkdir()
    load = os.getloadavg()
    try:
        parts = {
            "large: make": measure(cache, "make", large, options.large),
            "large: decode": measure(cache, "decode", large, options.size),
            "large: train a whole epoch within the limit": measure(
                cache, "train whole", large, options.size, options.limit_mib << 20
            ),
            "many: make": measure(cache, "make", many, options.pictures),
            "many: look, the first time": measure(cache, "look", many, 0),
            "many: look again": measure(cache, "look", many, 0),
            f"many: train {STEPS} steps": measure(cache, "train", many, 32),
        }
    finally:
        shutil.rmtree(options.work)
    record = {
        "many_pictures": options.pictures,
        "large_pictures": options.large,
        "large_size_pixels": options.size,
        "limit_bytes": options.limit_mib << 20,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": load,
        "load_after": os.getloadavg(),
        "machine": platform.platform(),
        "parts": parts,
    }
    if options.json:
        from cifarlab.files import write_atomic

        write_atomic(options.json, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

"""How long CIFAR-10's 60,000 pictures take to load, verified, and how much memory at the peak.

    python benchmarks/data_loading.py [--data-dir DIR] [--repeats N] [--archive] [--json]

Each row is the median of fresh processes, from `open_source` to both splits in memory; the files are in the
operating system's page cache. Without --data-dir the real data set is looked for as the program itself does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path


def load(data_dir: str) -> dict[str, float]:
    """In a process of its own: load both splits once."""
    from cifarlab.data import open_source

    start = time.perf_counter()
    source = open_source("cifar10", Path(data_dir) if data_dir else None)
    images = sum(len(source.load(split).images) for split in ("train", "test"))
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"images": images, "seconds": round(seconds, 3), "peak_megabytes": round(peak_bytes / 1e6)}


def measure(way: str, data_dir: str, cache: Path, repeats: int) -> dict[str, float | str]:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("CIFARLAB_DATA", None)
    command = [sys.executable, __file__, "--load", data_dir]
    runs = []
    for _ in range(repeats):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(done.stdout))
    return {"way": way} | {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def benchmark(data_dir: str, repeats: int, with_archive: bool) -> list[dict[str, float | str]]:
    with tempfile.TemporaryDirectory() as folder:
        cache, no_cache = Path(folder) / "cache", Path(folder) / "file"
        no_cache.write_text("")  # a file where the cache folder should be: nothing can be cached
        rows = [
            measure("folder, no cache yet", data_dir, cache, 1),
            measure("folder and verified cache", data_dir, cache, repeats),
            measure("verified cache", "", cache, repeats),
            measure("folder, cache not writable", data_dir, no_cache, repeats),
        ]
        if with_archive:
            archive = Path(folder) / "cifar-10-python.tar.gz"
            with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
                tar.add(batches_in(Path(data_dir)), "cifar-10-batches-py")
            rows.append(measure("archive, cache not writable", str(archive), no_cache, repeats))
        return rows


def batches_in(data_dir: Path) -> Path:
    inside = data_dir / "cifar-10-batches-py"
    return inside if inside.is_dir() else data_dir


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="where CIFAR-10's python batches are")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--archive", action="store_true", help="also from an archive, packed for it (15 s)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        print(json.dumps(load(options.load)))
        return
    data_dir = options.data_dir
    if data_dir is None:
        from cifarlab.data import open_source

        data_dir = open_source("cifar10").location
    rows = benchmark(data_dir, options.repeats, options.archive)
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'way':<30}{'images':>8}{'seconds':>10}{'peak MB':>10}")
    for row in rows:
        print(f"{row['way']:<30}{row['images']:>8,.0f}{row['seconds']:>10.2f}{row['peak_megabytes']:>10,.0f}")


if __name__ == "__main__":
    main()

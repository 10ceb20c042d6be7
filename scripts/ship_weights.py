"""Make src/cifarlab/shipped/, the run that comes with the package, of a finished run.

python scripts/ship_weights.py runs/fast94

The weights that the run's recipe names are rounded to float16; everything that is said of them (evaluation on
validation and test, calibration) is computed with the rounded ones. No path of this machine is left in the record.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from cifarlab import Run, evaluate
from cifarlab.calibration import calibrate
from cifarlab.files import sha256_of, write_atomic
from cifarlab.run import CALIBRATION, DATA, ENVIRONMENT, EVALUATION, RECIPE, SUMS
from cifarlab.shipped_run import FOLDER

MOST_BYTES = 8_000_000
TEXTS = (RECIPE, DATA, ENVIRONMENT, "metrics.jsonl", "metrics.csv")


def main(source: Path, target: Path = FOLDER) -> None:
    run = Run(source)
    if not run.is_complete:
        raise SystemExit(f"{source} is not finished")
    with tempfile.TemporaryDirectory() as folder:
        rounded = round_to_float16(run, Path(folder) / "run")
        results = [evaluate(rounded, split=split, device="cpu") for split in splits(run)]
        if run.recipe.data.may_choose:
            calibrate(rounded)
        else:
            print("not calibrated: the run has no validation pictures")
        check_weights(rounded)
        publish(rounded, target)
    for result in results:
        views = f", {result.accuracy_with_tta} with {result.tta_views} views" if result.tta else ""
        print(f"{result.split}: accuracy {result.accuracy}{views}")
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()):,} bytes")


def splits(run: Run) -> list[str]:
    return ["validation", "test"] if run.recipe.data.may_choose else ["test"]


def round_to_float16(run: Run, folder: Path) -> Run:
    """A run with the same recipe, data and metrics whose weights are float16, and with no word of this machine."""
    folder.mkdir()
    for name in TEXTS:
        content = (run.path / name).read_text("utf-8")
        if name in (DATA, ENVIRONMENT):
            content = json.dumps(without_paths(json.loads(content)), indent=1) + "\n"
        (folder / name).write_text(content, "utf-8")
    weights = run.default_weights
    tensors, header = run.load_weights(weights)
    rounded = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    overflown = [name for name, tensor in rounded.items() if not torch.isfinite(tensor).all()]
    if overflown:
        raise SystemExit(f"too large for float16: {', '.join(overflown)}")
    path = run.weights_path(weights).name
    (folder / path).write_bytes(save(rounded, metadata={"cifarlab": json.dumps(header)}))
    return Run(folder)


def without_paths(content: Any) -> Any:
    """The same JSON, with the last part alone of every absolute path."""
    if isinstance(content, dict):
        return {name: without_paths(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    return Path(content).name if isinstance(content, str) and Path(content).is_absolute() else content


def check_weights(run: Run) -> None:
    """That everything said is of exactly these weights."""
    weights = run.weights_checksum(run.default_weights)
    said_of = {use["weights_sha256"] for use in run.evaluations["test_set_uses"]}
    if run.calibration is not None:
        said_of.add(run.calibration["weights_sha256"])
    if said_of != {weights}:
        raise SystemExit("evaluation or calibration is of other weights")


def publish(run: Run, target: Path) -> None:
    """Move what ships to `target`, with its checksums, and nothing else."""
    run.update_evaluations(name_it_shipped)
    weights = run.weights_path(run.default_weights).name
    optional = [CALIBRATION] if run.calibration is not None else []
    names = sorted([*TEXTS, EVALUATION, weights, *optional])
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    for name in names:
        content = (run.path / name).read_bytes()
        if name != weights and str(run.path.parent).encode() in content:
            raise SystemExit(f"{name} holds a path of this machine")
        write_atomic(target / name, content)
    sums = "".join(f"{sha256_of(target / name)}  {name}\n" for name in names)
    write_atomic(target / SUMS, sums.encode())
    if sum(file.stat().st_size for file in target.iterdir()) > MOST_BYTES:
        raise SystemExit(f"{target} is larger than {MOST_BYTES:,} bytes")


def name_it_shipped(content: dict[str, Any]) -> None:
    for split in ("validation", "test"):
        for result in content.get(split, {}).values():
            result["run"] = "shipped"


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Peak resident memory of training each recipe on CIFAR-10: a few steps, validation, saving; each in its own process.

python benchmarks/memory.py                     every recipe that can begin on this machine
python benchmarks/memory.py fast94 vgg3-bn      those

The pictures are all 50,000, the steps at the recipe's own batch and at full resolution, which is the most that a whole
training takes at once; more steps or epochs add nothing to the peak.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cifarlab import RECIPES, text, train
from cifarlab.pretrained import available

RECORD = Path(__file__).parent / "results" / "memory.json"
STEPS, EPOCHS = 3, 2
LIMIT, FLAGSHIP_LIMIT = 1_500_000_000, 3_000_000_000
FLAGSHIPS = ("fast94", "fast95", "fast96")
NOT_MEASURED = ("demo",)


def measured() -> list[str]:
    return [name for name, recipe in RECIPES.items() if name not in NOT_MEASURED and available(recipe.model)]


def train_a_little(name: str) -> int:
    """Peak resident bytes of this process after a short training."""
    whole_pictures = {f"data.training_{name}": [] for name in ("scales", "crops", "skips")}
    settings: dict[str, Any] = {"epochs": EPOCHS, "data.steps_per_epoch": STEPS, **whole_pictures}
    if RECIPES[name].model.name == "airbench":
        settings["model.whitening_bias_epochs"] = 1  # an epoch with it, and one without
    with tempfile.TemporaryDirectory() as folder:
        train(name, out=Path(folder) / "run", overrides=settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def measure(name: str) -> int:
    command = [sys.executable, __file__, "--child", name]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{name}: {found.stderr}")
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("recipes", nargs="*", help="default: all")
    options.add_argument("--child", metavar="RECIPE", help=argparse.SUPPRESS)
    options.add_argument("--record", type=Path, default=RECORD)
    given = options.parse_args()
    if given.child:
        print(json.dumps(train_a_little(given.child)))
        return
    rows, found = [], {}
    for name in given.recipes or measured():
        found[name] = measure(name)
        limit = FLAGSHIP_LIMIT if name in FLAGSHIPS else LIMIT
        verdict = "yes" if found[name] < limit else "NO"
        rows.append([f"`{name}`", text.size(found[name]), text.size(limit), verdict])
        print(f"{name}: {text.size(found[name])}", file=sys.stderr)
    print(text.markdown_table(["recipe", "peak", "wanted below", "kept"], rows))
    record = {"machine": platform.platform(), "python": platform.python_version(), "peak_bytes": found}
    given.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

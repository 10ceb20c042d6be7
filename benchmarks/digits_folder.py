"""scikit-learn's handwritten digits as a folder of picture files, from survey to prediction, by the command line alone.

    python benchmarks/digits_folder.py [--recipe vgg1] [--epochs 15] [--work DIR]

The 1,797 digits, 8 x 8 and grey, are written as PNG files into ten class folders. Then, as a user types them:
`cifarlab data FOLDER`, `cifarlab train RECIPE --data FOLDER`, `cifarlab evaluate RUN`, `cifarlab predict RUN FOLDER`,
the last on a folder of copies without labels. The test split is the one that `train` cuts.

Stores what the commands said as benchmarks/results/digits_folder.json. About three minutes on one core.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import cifarlab

RESULT = Path(__file__).parent / "results" / "digits_folder.json"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PREDICTED = 100  # files


def write_digits(folder: Path) -> Path:
    """Grey levels 0..16 stretched to 0..255, one PNG file each, in a folder for each digit."""
    data = load_digits()
    for number, (levels, digit) in enumerate(zip(data.images, data.target, strict=True)):
        path = folder / NAMES[digit] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(levels * (255 / 16)).astype(np.uint8)).save(path)
    return folder


def ask(*words: object) -> Any:
    """The JSON document that a command prints."""
    command = [sys.executable, "-m", "cifarlab.cli", *map(str, words), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def predicted(run: Path, digits: Path, folder: Path) -> dict[str, Any]:
    """Of files that have lost their labels: how many are given the class of the folder they came from."""
    chosen = sorted(digits.rglob("*.png"), key=lambda path: path.name)[:PREDICTED]
    folder.mkdir()
    for path in chosen:
        shutil.copy(path, folder)
    answers = {Path(each["path"]).name: each["predictions"][0] for each in ask("predict", run, folder)}
    right = sum(answers[path.name]["class"] == path.parent.name for path in chosen)
    return {"n": len(chosen), "right": right, "among_them": "training pictures"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="vgg1")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--work", type=Path, default=None)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    digits, out = write_digits(work / "digits"), work / "run"
    survey = ask("data", digits)
    settings = (
        "--epochs",
        arguments.epochs,
        "--set",
        "data.validation=stratified",
        "--set",
        "device.threads=1",
    )
    trained = ask("train", arguments.recipe, "--data", digits, "--out", out, *settings)
    judged = ask("evaluate", out)
    run = cifarlab.Run(out)
    record = {
        "survey": {name: content for name, content in survey.items() if name != "location"},
        "recipe": run.recipe.model_dump(mode="json"),
        "pictures": {name: run.data[name] for name in ("n_train", "n_validation", "checksum", "reading")},
        "metrics": run.metrics,
        "elapsed_seconds": trained["elapsed_seconds"],
        "evaluation": {name: content for name, content in judged.items() if name != "run"},
        "predicted": predicted(out, digits, work / "photos"),
        "environment": run.environment,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"survey: {survey['problems'] or 'nothing wrong'}")
    print(f"test: {judged['n']} pictures, {100 * judged['accuracy']:.2f} % right; {record['predicted']}")


if __name__ == "__main__":
    main()

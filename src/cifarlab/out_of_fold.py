"""Out-of-fold predictions: of every training picture, the answer of the one network that was not trained on it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cifarlab.errors import UserError
from cifarlab.evaluation import evaluate
from cifarlab.files import write_atomic
from cifarlab.run import Run, is_run

FILE = "out-of-fold.safetensors"


@dataclass(frozen=True)
class OutOfFold:
    """Of the training set in the order of its files.

    Attributes:
        logits: float32 (N, classes).
        labels: int64 (N,).
        fold: int64 (N,), the fold that each picture was held out in.
        classes: names, in the order of the logits.
        data: the checksum of the data set.
    """

    logits: Tensor
    labels: Tensor
    fold: Tensor
    classes: tuple[str, ...]
    data: str

    @property
    def accuracy(self) -> float:
        return (self.logits.argmax(1) == self.labels).double().mean().item()

    @property
    def accuracies(self) -> list[float]:
        """Of each fold."""
        right = (self.logits.argmax(1) == self.labels).double()
        return [right[self.fold == fold].mean().item() for fold in range(int(self.fold.max()) + 1)]


def write_out_of_fold(runs: Sequence[Run], data_dir: str | Path | None = None) -> Path:
    """Judge each fold's run on its own held-out pictures, and write all of them beside the runs.

    Raises:
        UserError: when the runs are not all the folds of one training set, or as `evaluate` does.
    """
    indices = [torch.tensor(run.data["validation_indices"], dtype=torch.int64) for run in runs]
    n = runs[0].data["n_train"] + runs[0].data["n_validation"]
    held_out = torch.cat(indices)
    if not torch.equal(held_out.sort().values, torch.arange(n)):
        raise UserError(f"{runs[0].path.parent} does not hold every fold of its training set once")
    logits = torch.empty(n, len(runs[0].classes))
    labels, fold = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.int64)
    for number, (run, chosen) in enumerate(zip(runs, indices, strict=True)):
        evaluate(run, split="validation", data_dir=data_dir)
        stored = run.load_logits("validation")
        assert stored is not None
        logits[chosen], labels[chosen] = stored[0][f"logits-{run.default_weights}"], stored[0]["labels"]
        fold[chosen] = number
    return _write(runs, {"logits": logits, "labels": labels, "fold": fold})


def load_out_of_fold(folder: str | Path) -> OutOfFold:
    """The out-of-fold predictions in a group's folder, checked against their checksum and against the runs' weights.

    Raises:
        UserError: when there are none, the file is damaged, or a fold was trained on since.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {FILE}: `cifarlab train RECIPE --folds K` makes one")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["cifarlab"])
            tensors = {name: file.get_tensor(name) for name in ("logits", "labels", "fold")}
            intact = header["sha256"] == _digest(tensors)
    except (SafetensorError, ValueError, KeyError):
        intact = False
    if not intact:
        raise UserError(f"{path} is damaged: it does not match its checksum; repeat `train --folds`")
    for name, sha256 in header["weights_sha256"].items():
        fold = path.parent / name
        if is_run(fold) and _weights_sha256(Run(fold)) not in (sha256, None):
            raise UserError(f"{path} is of earlier weights than those in {name}: repeat `train --folds`")
    return OutOfFold(**tensors, classes=tuple(header["classes"]), data=header["data"])


def _write(runs: Sequence[Run], tensors: dict[str, Tensor]) -> Path:
    from safetensors.torch import save

    first = runs[0]
    header = {
        "recipe": first.recipe.name,
        "seed": first.recipe.seed,
        "classes": list(first.classes),
        "data": first.data["checksum"],
        "weights_sha256": {run.path.name: _weights_sha256(run) for run in runs},
        "sha256": _digest(tensors),
    }
    path = first.path.parent / FILE
    write_atomic(path, save(tensors, metadata={"cifarlab": json.dumps(header)}))
    return path


def _weights_sha256(run: Run) -> str | None:
    """None in a record, which has no weights."""
    kept = run.weights_path(run.default_weights).exists()
    return run.weights_checksum(run.default_weights) if kept else None


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the values of all tensors, by the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()

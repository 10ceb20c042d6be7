"""Evaluation: the logits of a split once, and every figure from them.

The test set is opened here alone (and by training where a recipe says `data.validation = "test"`), and each time is
recorded in the run. The logits are stored; the same weights on the same split are answered from them. Who needs the
pictures themselves, to show them or to change them, gets them from `open_pictures`, which records that too.
"""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarlab import __version__, text
from cifarlab.data import Source
from cifarlab.data.listing import SplitName
from cifarlab.data.loader import on_device
from cifarlab.data.mapped import Pictures, choose
from cifarlab.data.sources import DecodingProgress, check_same_data, reopen_source
from cifarlab.environment import choose_device
from cifarlab.errors import UserError, nearest, one_of
from cifarlab.macro import macro_mean, uneven
from cifarlab.preparation import Preparation
from cifarlab.run import Run, Weights
from cifarlab.tta import RULES, averaged, view_logits


@dataclass(frozen=True)
class ClassMetrics:
    """Of one class: precision, recall and F1, 0..1 (0 where there is nothing to divide by), and its pictures."""

    name: str
    precision: float
    recall: float
    f1: float
    n: int


@dataclass(frozen=True)
class Evaluation:
    """What a run's weights reach on a split.

    Attributes:
        run: the run's directory.
        n: pictures in the split.
        loss: mean cross-entropy, natural logarithm; None when a logit is not finite.
        accuracy: 0..1.
        accuracy_with_tta: 0..1, of answers averaged over `tta_views` copies of each picture (`cifarlab.tta`); None
            where the recipe has no `test_time_views`. All other figures are of the pictures as they are.
        classes: in the order of the logits.
        confusion: counts, `confusion[true][predicted]`.
        reused: the logits were stored by an earlier evaluation, and no picture was opened for this one.
        validation_was_test: the recipe used the test set as validation data while it trained.
    """

    run: str
    split: str
    weights: str
    n: int
    loss: float | None
    accuracy: float
    accuracy_with_tta: float | None
    tta_views: int
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    reused: bool = field(default=False, compare=False)
    validation_was_test: bool = False

    @property
    def macro_accuracy(self) -> float:
        """The mean over classes of the part of their pictures that is right (balanced accuracy), 0..1."""
        return macro_mean([(each.recall, each.n) for each in self.classes])

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over classes, 0..1."""
        return macro_mean([(each.f1, each.n) for each in self.classes])

    @property
    def is_uneven(self) -> bool:
        """Whether classes differ so much in size that accuracy says little of the small ones."""
        return uneven([each.n for each in self.classes])

    def to_dict(self) -> dict[str, Any]:
        """As `cifarlab evaluate --json` prints it."""
        content = asdict(self)
        names = ("run", "split", "weights", "n", "loss", "accuracy", "macro_accuracy", "macro_f1")
        names += ("tta", "accuracy_with_tta", "tta_views")
        return {name: getattr(self, name) for name in names} | {
            "classes": content["classes"],
            "confusion": content["confusion"],
        }

    @property
    def tta(self) -> bool:
        """Whether there is a figure with test-time augmentation beside the plain one."""
        return self.accuracy_with_tta is not None


def evaluate(
    run: Run | str | Path,
    *,
    split: str = "test",
    weights: str | None = None,
    data: Source | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    decoding: DecodingProgress | None = None,
) -> Evaluation:
    """Judge a run's weights on a split, and write the result into the run's evaluation.json.

    Network, preparation, class names and validation cut come from the run; pictures come from the data source and are
    verified against the checksum of the data that the run was trained with.

    Args:
        run: a run or its directory.
        split: "test", "validation" or "train" (the pictures trained on, as they are: without augmentation).
        weights: "best" or "last"; None for those that the run's recipe names.
        data: the run's source again, which it needs where that was given in Python (`cifarlab.data.from_arrays`).
        data_dir: the folder of CIFAR-10's batches, or its parent; beats `CIFARLAB_DATA` and the user's cache.
        device: where the network works, where it has to: "auto", "cpu", "cuda" or "mps".
        decoding: called as `decoding(done, total)`, in pictures, where picture files have to be decoded again.

    Raises:
        UserError: when the run has no such weights or split, something in it is damaged, or the data is other data.
    """
    run = run if isinstance(run, Run) else Run(run)
    _check_choice("split", split, get_args(SplitName))
    if weights is not None:
        _check_choice("weights", weights, get_args(Weights))
    if split == "validation" and run.recipe.data.validation == "none":
        raise UserError(f"{run.path} has no validation split: its recipe says data.validation=none")
    chosen: Weights = weights or run.default_weights  # type: ignore[assignment]
    run.load_weights(chosen)  # says what is wrong with them before any picture is opened
    opened = _opened_split(run, split)
    stored = _stored_logits(run, opened, chosen, views=len(RULES[run.recipe.test_time_views]))
    if stored is None:
        source = open_data(run, data, data_dir, decoding)
        views, labels, weights_sha256 = _compute_logits(run, split, chosen, source, device)
        result = measure(run, split, chosen, views, labels, reused=False)
        _record(run, result)
        _store_logits(run, opened, chosen, weights_sha256, views, labels)
    else:
        result = measure(run, split, chosen, *stored, reused=True)
        if not _is_recorded(run, result):  # what is known already leaves the record as it was
            _record(run, result)
    return result


def judged_before(
    run: Run,
    *,
    split: str,
    weights: str | None = None,
    data: Source | None = None,
    data_dir: str | Path | None = None,
    decoding: DecodingProgress | None = None,
) -> Evaluation:
    """As `evaluate`, but the test set is not opened for it: its answers must have been stored before.

    Raises:
        UserError: as `evaluate`, and where `evaluate` has not judged these weights on the test set.
    """
    _check_choice("split", split, get_args(SplitName))
    chosen = weights or run.default_weights
    run.load_weights(chosen)  # type: ignore[arg-type]  # says what is wrong with them
    if _opened_split(run, split) == "test" and stored_answers(run, split, chosen) is None:
        raise UserError(
            f"the test set is opened by evaluate alone: {_how_to_judge(run, weights)} first, or --split validation"
        )
    return evaluate(run, split=split, weights=weights, data=data, data_dir=data_dir, decoding=decoding)


def _how_to_judge(run: Run, weights: str | None) -> str:
    if run.data.get("in_memory"):
        given = f", weights={weights!r}" if weights else ""
        return f"cifarlab.evaluate({str(run.path)!r}{given}, data=source) in Python, whose data the run was trained on,"
    return f"`{text.command('evaluate', run.path, *(['--weights', weights] if weights else []))}`"


def load_answers(run: Run, split: str, weights: str) -> tuple[Tensor, Tensor]:
    """Logits float32 (N, classes) and labels int64 (N,) of a split that `evaluate` has judged with these weights."""
    stored = stored_answers(run, split, weights)
    assert stored is not None, "evaluate comes first"
    return stored


def load_views(run: Run, split: str, weights: str) -> tuple[Tensor, Tensor]:
    """As `load_answers`, but logits (views, N, classes): to each view of the recipe's `test_time_views`, in order."""
    views = len(RULES[run.recipe.test_time_views])
    stored = _stored_logits(run, _opened_split(run, split), weights, views)  # type: ignore[arg-type]
    assert stored is not None, "evaluate comes first"
    return stored


def stored_answers(run: Run, split: str, weights: str) -> tuple[Tensor, Tensor] | None:
    """As `load_answers`; None where `evaluate` has not judged these weights, as they are now, on the split."""
    stored = _stored_logits(run, _opened_split(run, split), weights, views=1)  # type: ignore[arg-type]
    return stored and (stored[0][0], stored[1])


def open_pictures(
    run: Run,
    split: str,
    weights: str,
    *,
    command: str,
    data: Source | None = None,
    data_dir: str | Path | None = None,
) -> np.ndarray:
    """Pictures uint8 (N, H, W, 3) of a split, in the order of its logits; a use of the test set is recorded first.

    Args:
        weights: those that look at the pictures: "best" or "last".
        command: what the pictures are opened for; it stands in the record.
        data, data_dir: as for `evaluate`.

    Raises:
        UserError: when the data is not there, or is other data than the run was trained with.
    """
    source = open_data(run, data, data_dir)
    if _opened_split(run, split) == "test":
        source.check_has("test")
        _record_use(run, split, weights, run.weights_checksum(weights), command)  # type: ignore[arg-type]
    return _pictures(run, source, split)[0][:]


def open_data(
    run: Run,
    data: Source | None = None,
    data_dir: str | Path | None = None,
    decoding: DecodingProgress | None = None,
) -> Source:
    """The data that a run was trained with, at the size of its inputs; `data` is that already, where it is given.

    Raises:
        UserError: when the data is not there, or is other data than the run was trained with.
    """
    size, fit = run.recipe.input.size, run.recipe.input.fit
    place = None if data_dir is None else Path(data_dir)
    source = data or reopen_source(run.data, place, size_pixels=size, fit=fit, decoding=decoding)
    check_same_data(run.path, run.data, source)
    return source.sized(size, fit)


def measure(run: Run, split: str, weights: str, views: Tensor, labels: Tensor, *, reused: bool) -> Evaluation:
    """Every figure from float32 logits (views, N, classes), the unchanged pictures' first, and int64 labels (N,)."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    indices = np.arange(len(run.classes))
    logits, rule = views[0], run.recipe.test_time_views
    predicted, true = logits.argmax(1).numpy(), labels.numpy()
    per_class = precision_recall_fscore_support(true, predicted, labels=indices, zero_division=0)  # type: ignore[arg-type]
    precision, recall, f1, counts = (np.asarray(values).tolist() for values in per_class)
    confusion = confusion_matrix(true, predicted, labels=indices).tolist()
    loss = F.cross_entropy(logits.double(), labels).item()
    return Evaluation(
        run=str(run.path),
        split=split,
        weights=weights,
        n=len(true),
        loss=loss if np.isfinite(loss) else None,
        accuracy=_accuracy(logits, labels),
        accuracy_with_tta=None if rule == "none" else _accuracy(averaged(views, rule), labels),
        tta_views=len(views),
        classes=tuple(
            ClassMetrics(name, *figures)
            for name, *figures in zip(run.classes, precision, recall, f1, counts, strict=True)
        ),
        confusion=tuple(tuple(row) for row in confusion),
        reused=reused,
        validation_was_test=run.recipe.data.validation == "test",
    )


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise UserError(f"{name} should be {one_of(allowed)}, '{given}' given{nearest(given, allowed)}")


def _opened_split(run: Run, split: str) -> str:
    """The split whose logits answer: with validation = "test" a question about validation is one about the test set."""
    return "test" if split == "validation" and run.recipe.data.validation == "test" else split


def _compute_logits(
    run: Run,
    split: str,
    weights: Weights,
    source: Source,
    device_name: str,
) -> tuple[Tensor, Tensor, str]:
    """Logits float32 (views, N, classes), labels int64 (N,), and the SHA-256 of the weights that the logits are of."""
    device = choose_device(run.recipe.device.model_copy(update={"name": device_name}))
    model, preparation, weights_sha256 = _load_network(run, weights, str(device))
    if _opened_split(run, split) == "test":
        source.check_has("test")
        _record_use(run, split, weights, weights_sha256, "evaluate")
    images, labels = _pictures(run, source, split)
    pictures = on_device(images, device)
    views = view_logits(model, preparation, pictures, run.recipe.test_time_views)
    return views.cpu(), torch.from_numpy(labels), weights_sha256


def _load_network(run: Run, weights: Weights, device: str) -> tuple[nn.Module, Preparation, str]:
    """Network, preparation, and the SHA-256 of the one file of both: a training may replace it at any moment."""
    while True:
        weights_sha256 = run.weights_checksum(weights)
        model, preparation = run.load_model(weights, device), run.load_preparation(weights)
        if run.weights_checksum(weights) == weights_sha256:
            return model, preparation, weights_sha256


def _pictures(run: Run, source: Source, split: str) -> tuple[Pictures, np.ndarray]:
    """Pictures uint8 (N, H, W, 3) and labels int64 (N,) of the split as the run cut it."""
    if _opened_split(run, split) == "test":
        test = source.load("test")
        return test.images, test.labels
    train = source.load("train")
    validates = np.zeros(len(train.labels), bool)
    validates[run.data["validation_indices"]] = True
    chosen = validates if split == "validation" else ~validates
    return choose(train.images, chosen), train.labels[chosen]


# Stored logits: for each kind of weights a tensor, one more for the other views of test-time augmentation where there
# are any, and in the header what they were computed from.


def _stored_logits(run: Run, opened: str, weights: Weights, views: int) -> tuple[Tensor, Tensor] | None:
    """Logits (views, N, classes) and labels (N,); None where these weights have not looked at so many views."""
    stored = run.load_logits(opened)
    if stored is None:
        return None
    tensors, header = stored
    if header["weights_sha256"].get(weights) != run.weights_checksum(weights):
        return None
    plain = tensors[f"logits-{weights}"]
    others = tensors.get(f"views-{weights}", plain.new_empty(0, *plain.shape))[: views - 1]
    return (torch.cat([plain[None], others]), tensors["labels"]) if len(others) == views - 1 else None


def _store_logits(
    run: Run, opened: str, weights: Weights, weights_sha256: str, views: Tensor, labels: Tensor
) -> None:
    tensors, header = run.load_logits(opened) or ({}, {"weights_sha256": {}})
    checksums = header["weights_sha256"] | {weights: weights_sha256}
    tensors = tensors | {f"logits-{weights}": views[0], "labels": labels}
    tensors.pop(f"views-{weights}", None)  # of other weights
    if len(views) > 1:
        tensors[f"views-{weights}"] = views[1:]
    run.write_logits(opened, tensors, {"weights_sha256": checksums, "data": run.data["checksum"]})


def _is_recorded(run: Run, result: Evaluation) -> bool:
    recorded = run.evaluations.get(result.split, {}).get(result.weights)
    return recorded is not None and {**recorded, "run": ""} == json.loads(
        json.dumps({**result.to_dict(), "run": ""})
    )


def _record(run: Run, result: Evaluation) -> None:
    def change(content: dict[str, Any]) -> None:
        content.setdefault(result.split, {})[result.weights] = result.to_dict()
        content.setdefault("test_set_uses", [])

    run.update_evaluations(change)


def _record_use(run: Run, split: str, weights: str, weights_sha256: str, command: str) -> None:
    """Add a line to `test_set_uses`, before the test set is read: whatever happens then, it is told."""
    use = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "split": split,
        "weights": weights,
        "weights_sha256": weights_sha256,
        "command": command,
        "version": __version__,
    }
    run.update_evaluations(lambda content: content.setdefault("test_set_uses", []).append(use))

"""The run directory: the only module that knows its file names and formats.

There is one commit point: `state.json`. It names the state file it belongs to with that file's SHA-256, carries the
metrics of every finished epoch, and is replaced in one rename. Weights, metrics, CSV and curves are published from it
afterwards, so that a process killed at any moment leaves either the old state or the new one, and `resume` writes again
whatever was cut off. Nothing is pickled.
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cifarlab import text
from cifarlab.errors import UserError
from cifarlab.files import opened_for_update, sha256_of, write_atomic
from cifarlab.recipe import Recipe, from_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from cifarlab.preparation import Preparation

Weights = Literal["best", "last"]
Row = dict[str, Any]
Content = bytes | Iterable[bytes | memoryview]
METRICS: tuple[str, ...] = (
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "images_per_second",
    "elapsed_seconds",
)
RECIPE, ENVIRONMENT, DATA, STATE, EVALUATION, CALIBRATION, WRITERS = (
    f"{name}.json"
    for name in ("recipe", "environment", "data", "state", "evaluation", "calibration", "writers")
)
DIVERGED = "diverged.json"
SUMS, LOCK, SUMS_LOCK, EVALUATION_LOCK = "SHA256SUMS", ".lock", ".sums.lock", ".evaluation.lock"
NUMBERS = re.compile(r"\[\n\s*(-?\d+(?:,\n\s*-?\d+)*)\n\s*\]")  # in indented JSON; no string holds a line end
CURVES = "figures/learning-curves.png"


def is_run(path: Path) -> bool:
    """True for a directory that holds `recipe.json`."""
    return (path / RECIPE).is_file()


def keeps_best(recipe: Recipe) -> bool:
    """Whether there is a validation loss that weights may be chosen by."""
    return recipe.data.may_choose


def best_epoch(rows: list[Row], recipe: Recipe) -> int | None:
    """The epoch (from 1) of the lowest validation loss; None where nothing may be chosen by it."""
    if not keeps_best(recipe) or not rows:
        return None
    return min(rows, key=lambda row: row["validation_loss"])["epoch"]


def chosen_row(rows: Sequence[Row], recipe: Recipe) -> Row:
    """The line of metrics of the weights that the recipe's rule takes from these epochs."""
    best = best_epoch(list(rows), recipe) if recipe.weights == "best" else None
    return rows[-1] if best is None else rows[best - 1]


def stopped_early(rows: list[Row], recipe: Recipe) -> bool:
    """True when the validation loss has not fallen by `min_delta` for `patience_epochs` epochs."""
    patience = recipe.early_stopping.patience_epochs
    if patience is None:
        return False
    lowest, since = float("inf"), 0
    for row in rows:
        lower = row["validation_loss"] < lowest - recipe.early_stopping.min_delta
        lowest, since = (row["validation_loss"], 0) if lower else (lowest, since + 1)
    return since >= patience


@dataclass(frozen=True)
class Partial:
    """Sums over the images of an epoch that is not finished."""

    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """Where a training stands: with the tensors of its state file, all that an exact resume needs."""

    step: int = 0
    rows: list[Row] = field(default_factory=list)
    partial: Partial = Partial()
    elapsed_seconds: float = 0.0


class Run:
    """An existing run directory.

    Raises:
        UserError: when `path` is missing or is not a run, or a file in it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(f"there is no run at {self.path}")
        if not is_run(self.path):
            inside = (
                sorted(child for child in self.path.iterdir() if is_run(child)) if self.path.is_dir() else []
            )
            some = f"; it holds runs: give one of them, as {inside[0]}" if inside else ""
            raise UserError(f"{self.path} is not a run: it has no {RECIPE}{some}")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(
        cls, path: Path | None, recipe: Recipe, environment: dict[str, Any], data: dict[str, Any]
    ) -> "Run":
        """A new run directory at `path`, or at `runs/<recipe>-s<seed>-<n>`.

        Raises:
            UserError: when `path` is already used or cannot be written.
        """
        chosen = _make_directory(path, recipe)
        contents = {ENVIRONMENT: environment, DATA: data, RECIPE: recipe.model_dump(mode="json")}
        with _held(chosen):
            if is_run(chosen):
                raise UserError(f"--out {chosen} already holds a run: give another")
            sums = {name: write_atomic(chosen / name, _json(content)) for name, content in contents.items()}
            run = cls(chosen)
            run._set_sums(sums)
        return run

    # What the run says about itself

    @cached_property
    def recipe(self) -> Recipe:
        return from_json(self._read(RECIPE).decode(), str(self.path / RECIPE))

    @cached_property
    def environment(self) -> dict[str, Any]:
        return self._read_json(ENVIRONMENT)

    @cached_property
    def data(self) -> dict[str, Any]:
        """{name, location, checksum, classes, input_shape, n_train, n_validation, validation, validation_indices}"""
        return self._read_json(DATA)

    @property
    def imported(self) -> dict[str, Any] | None:
        """{file, sha256, format, layers, time, version} of the file that the run's first weights are from, if any."""
        began_with = self.data.get("initial_weights", {})
        return began_with if "file" in began_with else None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.data["classes"])

    @property
    def metrics(self) -> list[Row]:
        """One row for each finished epoch, with the keys of `METRICS`."""
        if not (self.path / "metrics.jsonl").exists():
            return []
        try:
            return [json.loads(line) for line in self._read("metrics.jsonl").decode().splitlines()]
        except ValueError:
            raise self._damaged("metrics.jsonl") from None

    @property
    def best_epoch(self) -> int | None:
        return best_epoch(self.metrics, self.recipe)

    @property
    def default_weights(self) -> Weights:
        """The recipe's own; `last` where none were chosen: validation was the test set, there was none, or no epoch
        was trained since the weights were imported."""
        untrained = self.imported is not None and not self.metrics
        return self.recipe.weights if keeps_best(self.recipe) and not untrained else "last"

    @property
    def is_complete(self) -> bool:
        rows = self.metrics
        return len(rows) >= self.recipe.epochs or stopped_early(rows, self.recipe)

    @property
    def is_record(self) -> bool:
        """True for what is kept of a run without its resume state: nothing can be trained further."""
        return (self.path / "metrics.jsonl").exists() and not (self.path / STATE).exists()

    @property
    def divergence(self) -> str | None:
        """Where the training stopped because its loss was not finite; None when it did not."""
        return self._read_json(DIVERGED)["message"] if (self.path / DIVERGED).exists() else None

    @property
    def hardware(self) -> str:
        """The GPU, or the processor and how many threads of it were used; and bfloat16 where that was."""
        parts = [self.environment.get("device_name", "unknown")]
        if self.environment.get("device") == "cpu":
            parts.append(text.count(self.environment.get("threads", 1), "thread"))
        if self.environment.get("precision") == "bfloat16":
            parts.append("bfloat16")
        return ", ".join(parts)

    # Weights

    def weights_path(self, weights: Weights) -> Path:
        return self.path / f"weights-{weights}.safetensors"

    def load_weights(self, weights: Weights | None = None) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
        """Tensors by name, and the header: {model, classes, preparation, input_shape, recipe, epoch, step}.

        Raises:
            UserError: when there are none, or the file does not match its checksum.
        """
        chosen = weights or self.default_weights
        if chosen not in get_args(Weights):
            raise UserError(f"weights should be best or last, {chosen!r} given")
        path = self.weights_path(chosen)
        if not path.exists():
            raise UserError(self._why_no_weights(chosen))
        return self._read_tensors(path.name)

    def weights_checksum(self, weights: Weights) -> str:
        return sha256_of(self.weights_path(weights))

    def load_model(self, weights: Weights | None = None, device: str = "cpu") -> "nn.Module":
        """The trained network in evaluation mode, float32 (N, C, H, W) -> logits (N, classes)."""
        import torch

        from cifarlab.models import build_model

        tensors, header = self.load_weights(weights)
        with torch.random.fork_rng(devices=[]):
            model = build_model(self.recipe.model, len(header["classes"]), tuple(header["input_shape"]))
        model.load_state_dict(tensors)
        return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def load_preparation(self, weights: Weights | None = None) -> "Preparation":
        """The preparation stored with the weights."""
        from cifarlab.preparation import Preparation

        return Preparation.from_dict(self.load_weights(weights)[1]["preparation"])

    def _why_no_weights(self, weights: Weights) -> str:
        if weights == "best" and not keeps_best(self.recipe):
            return (
                f"{self.path} keeps no best weights: with data.validation={self.recipe.data.validation} nothing is"
                " chosen by validation loss; use the last"
            )
        if self.is_record:
            return f"{self.path} is a record: its figures are kept, and its weights are not"
        way_out = f"`{text.command('resume', self.path)}` goes on with its training"
        return f"{self.path} has no {weights} weights yet: {way_out}"

    # Training: one writer at a time

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for training.

        Raises:
            UserError: when another process trains in this directory.
        """
        with _held(self.path):
            for own in (
                ".state",
                ".weights",
                ".metrics",
                ".recipe",
                ".writers",
                "figures/.",
            ):  # of a training that was killed
                for cut_off in self.path.glob(f"{own}*.tmp"):
                    cut_off.unlink(missing_ok=True)
            yield

    def set_divergence(self, message: str | None) -> None:
        """Keep why the training stopped, or forget it."""
        if message is not None:
            self._write({DIVERGED: _json({"message": message})})
        elif (self.path / DIVERGED).exists():
            (self.path / DIVERGED).unlink()
            self._set_sums({DIVERGED: None})

    def replan(self, recipe: Recipe) -> None:
        """Store a new plan (epochs, schedule, device) for the same training."""
        self._write({RECIPE: _json(recipe.model_dump(mode="json"))})
        self.__dict__.pop("recipe", None)

    def load_state(self) -> tuple[State, dict[str, "Tensor"]] | None:
        """The committed state and its tensors; None when nothing was committed yet.

        Raises:
            UserError: when a file is damaged or belongs to another recipe.
        """
        from safetensors.torch import load

        path = self.path / STATE
        if not path.exists() and not (self.path / "metrics.jsonl").exists():
            return None
        if not path.exists():
            raise UserError(
                f"{path} is missing, and without it nothing can be resumed; restore it from a copy"
            )
        try:
            content = json.loads(path.read_bytes())
            intact = content.pop("sha256") == _digest(content)
        except (ValueError, KeyError, AttributeError, OSError):
            intact = False
        if not intact:
            raise UserError(f"{path} is damaged: it does not match its own checksum; restore it from a copy")
        if content["training"] != _training_digest(self.recipe):
            raise UserError(
                f"{path} belongs to another recipe than {self.path / RECIPE}: it cannot be resumed"
            )
        tensors = self.path / content["file"]
        if not tensors.exists():
            raise UserError(f"{tensors} is missing: {STATE} names it; restore it from a copy")
        bytes_read = tensors.read_bytes()
        if hashlib.sha256(bytes_read).hexdigest() != content["file_sha256"]:
            raise UserError(
                f"{tensors} is damaged: its checksum is not the one in {STATE}; restore it from a copy"
            )
        partial = Partial(**content["partial"])
        return State(content["step"], content["rows"], partial, content["elapsed_seconds"]), load(bytes_read)

    def commit(self, state: State, tensors: dict[str, "Tensor"]) -> None:
        """Make `state` the one that a resume starts from, in one rename."""
        from cifarlab.tensor_file import pieces

        file = _state_file(state)
        with self._sums_of_new(file, STATE) as sums:
            sums[file] = write_atomic(self.path / file, pieces(tensors))
            content = {
                "file": file,
                "file_sha256": sums[file],
                "training": _training_digest(self.recipe),
                **asdict(state),
            }
            sums[STATE] = write_atomic(self.path / STATE, _json(content | {"sha256": _digest(content)}))
        self.forget_other_states(state)

    def forget_other_states(self, state: State) -> None:
        """Delete the state files of other steps and their checksums, those too that a kill left behind.

        Under the lock alone: a training at work writes its next file before state.json names it.
        """
        kept = _state_file(state)
        found = {path.name for path in self.path.glob("state-*.safetensors")}
        listed = {name for name in self._sums() if name.startswith("state-")}
        old = (found | listed) - {kept}
        for name in old:
            (self.path / name).unlink(missing_ok=True)
        if old:
            self._set_sums(dict.fromkeys(old))

    def keep_record_only(self) -> None:
        """Delete weights and resume state: what is left tells what the training was and gave, and cannot go on."""
        names = [STATE, *(path.name for path in self.path.glob("*.safetensors"))]
        self._set_sums(dict.fromkeys(names))
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def publish(self, rows: list[Row], weights: dict[str, "Tensor"], header: dict[str, Any]) -> None:
        """Write what people and other commands read: weights (best and last), metrics as JSON lines and as CSV.

        Called with the weights of the last of `rows`, right after the commit of that epoch; without rows, with
        weights that were imported.
        """
        from cifarlab.tensor_file import pieces

        metadata = {"cifarlab": json.dumps(header)}
        best = bool(rows) and rows[-1]["epoch"] == best_epoch(rows, self.recipe)
        kinds: tuple[Weights, ...] = ("last", "best") if best else ("last",)
        files: dict[str, Content] = {
            self.weights_path(kind).name: pieces(weights, metadata) for kind in kinds
        }
        files["metrics.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        files["metrics.csv"] = _as_csv(rows).encode()
        self._write(files)

    @property
    def curves_path(self) -> Path:
        return self.path / CURVES

    def publish_curves(self) -> None:
        """Draw figures/learning-curves.png from the metrics."""
        from cifarlab.figures import save_figure

        self.curves_path.parent.mkdir(exist_ok=True)
        save_figure(self.draw_curves(), self.curves_path)

    def draw_curves(self) -> "Figure":
        """The learning curves of the finished epochs."""
        from cifarlab.figures import learning_curves

        return learning_curves(
            self.metrics,
            title=f"{self.recipe.name} on {self.data['name']}, seed {self.recipe.seed}",
            best_epoch=self.best_epoch,
            validation_name="test" if self.recipe.data.validation == "test" else "validation",
        )

    # Other stores of the metrics

    @property
    def tensorboard_path(self) -> Path:
        return self.path / "tensorboard"

    def writer_record(self, name: str) -> dict[str, Any]:
        """What a writer (`mlflow`, `wandb`) keeps in order to find its own run again; empty before the first time."""
        return self.writer_records.get(name, {})

    @property
    def writer_records(self) -> dict[str, dict[str, Any]]:
        """writers.json: what each writer keeps, by its name."""
        return self._read_json(WRITERS) if (self.path / WRITERS).exists() else {}

    def set_writer_record(self, name: str, record: dict[str, Any]) -> None:
        self._write({WRITERS: _json(self.writer_records | {name: record})})

    # Evaluation

    @property
    def evaluations(self) -> dict[str, Any]:
        """evaluation.json: {split: {weights: evaluation}, "test_set_uses": [...]}; empty before the first one."""
        return self._read_json(EVALUATION) if (self.path / EVALUATION).exists() else {}

    def update_evaluations(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Let `change` alter the content of evaluation.json, while no other process does."""
        with opened_for_update(self.path / EVALUATION_LOCK) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = self.evaluations
            change(content)
            self._write({EVALUATION: _json(content)})

    def load_logits(self, split: str) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
        """Stored tensors and header of a split's logits, or None."""
        name = f"logits-{split}.safetensors"
        if not (self.path / name).exists():
            return None
        return self._read_tensors(name)

    def judged_weights(self, split: str) -> dict[str, str]:
        """{weights: SHA-256} of the weights that the stored logits of a split are of; empty where there are none."""
        name = f"logits-{split}.safetensors"
        if not (self.path / name).exists():
            return {}
        try:
            return json.loads(_header_metadata(self._read(name))["cifarlab"])["weights_sha256"]
        except (ValueError, KeyError):
            raise self._damaged(name) from None

    def write_logits(self, split: str, tensors: dict[str, "Tensor"], header: dict[str, Any]) -> None:
        from cifarlab.tensor_file import pieces

        content = pieces(tensors, {"cifarlab": json.dumps(header)})
        self._write({f"logits-{split}.safetensors": content})

    @property
    def calibration(self) -> dict[str, Any] | None:
        """calibration.json, as `cifarlab.calibration.calibrate` wrote it; None where it did not."""
        return self._read_json(CALIBRATION) if (self.path / CALIBRATION).exists() else None

    def set_calibration(self, content: dict[str, Any]) -> None:
        self._write({CALIBRATION: _json(content)})

    def calibration_of(self, weights: Weights) -> dict[str, Any] | None:
        """The calibration, if it is of these weights as they are now."""
        found = self.calibration
        return found if found and found["weights_sha256"] == self.weights_checksum(weights) else None

    # Files and checksums

    def _read_json(self, name: str) -> Any:
        try:
            return json.loads(self._read(name))
        except ValueError:
            raise self._damaged(name) from None

    def _read_tensors(self, name: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
        """Tensors by name, and our header, of a safetensors file."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        content = self._read(name)
        try:
            return load(content), json.loads(_header_metadata(content)["cifarlab"])
        except (SafetensorError, ValueError, KeyError):
            raise self._damaged(name) from None

    def _damaged(self, name: str) -> UserError:
        return UserError(
            f"{self.path / name} is damaged: it is not what was written there; restore it from a copy"
        )

    def _read(self, name: str, again: bool = False) -> bytes:
        """The bytes of a published file, checked against SHA256SUMS."""
        try:
            content = (self.path / name).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{self.path} has no {name}") from None
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be read: {error.strerror}") from None
        expected = self._sums().get(name)
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            if not again:  # a training may have replaced the file between the two readings
                return self._read(name, again=True)
            raise UserError(
                f"{self.path / name} is damaged: it does not match its checksum in {SUMS}; restore it from a copy"
            )
        return content

    def _sums(self) -> dict[str, str]:
        path = self.path / SUMS
        if not path.exists():
            return {}
        pairs = (line.split("  ", 1) for line in path.read_text().splitlines() if "  " in line)
        return {name: digest for digest, name in pairs}

    def _write(self, files: Mapping[str, Content]) -> None:
        """Write files and their checksums."""
        with self._sums_of_new(*files) as sums:
            for name, content in files.items():
                sums[name] = write_atomic(self.path / name, content)

    @contextlib.contextmanager
    def _sums_of_new(self, *names: str) -> Iterator[dict[str, str]]:
        """Takes the checksums of files that are written meanwhile, by name. Those there were are taken out first, so
        that none is ever of an older file."""
        before, written = self._sums(), {}
        self._set_sums(dict.fromkeys(names))
        try:
            yield written
        finally:  # what a full disk kept from being written is the old file still
            self._set_sums({name: written.get(name, before.get(name)) for name in names})

    def _set_sums(self, changes: Mapping[str, str | None]) -> None:
        with opened_for_update(self.path / SUMS_LOCK) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for cut_off in self.path.glob(f".{SUMS}.*.tmp"):  # of a process that was killed: the lock is ours
                cut_off.unlink(missing_ok=True)
            sums: dict[str, str | None] = {**self._sums(), **changes}
            lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if digest]
            write_atomic(self.path / SUMS, "".join(lines).encode())


@contextlib.contextmanager
def _held(run: Path) -> Iterator[None]:
    with opened_for_update(run / LOCK) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another training is running in {run}: wait for it, or give another --out"
            ) from None
        yield


def check_out(path: Path | None) -> None:
    """See, before anything long, that a run could be made at `path`.

    Raises:
        UserError: when it is a file, holds a run, or is not empty.
    """
    if path is None or not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"--out {path} is a file, and a run is a folder: give another")
    if is_run(path):
        raise UserError(
            f"--out {path} already holds a run: `{text.command('resume', path)}` goes on with it, or give another"
        )
    if any(path.iterdir()):
        raise UserError(f"--out {path} is not empty: give a new folder")


def _make_directory(path: Path | None, recipe: Recipe) -> Path:
    check_out(path)
    try:
        if path is None:
            return _make_numbered(Path("runs"), f"{recipe.name}-s{recipe.seed}")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path or 'runs'} cannot be written: {error.strerror}") from None
    return path


def _make_numbered(parent: Path, stem: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (parent / f"{stem}-{number}").mkdir()
            return parent / f"{stem}-{number}"
        except FileExistsError:
            number += 1


def _state_file(state: State) -> str:
    return f"state-{state.step:09d}.safetensors"


def _training_digest(recipe: Recipe) -> str:
    """Of everything in a recipe that a state depends on: not the plan (epochs, schedule, early stopping), device or
    judging.

    Fields at their defaults are left out, so that a field added by a later version changes no digest.
    """
    plan = {"epochs", "schedule", "early_stopping", "device", "weights", "test_time_views", "published"}
    content = recipe.model_dump(mode="json", exclude=plan, exclude_defaults=True)
    return _digest(content | {"kinds": [recipe.model.name, recipe.optimizer.name]})


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _json(content: Any) -> bytes:
    """Indented, but for lists of whole numbers: each stands on one line."""
    written = json.dumps(content, indent=1, ensure_ascii=False)
    return (NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", written) + "\n").encode()


def _header_metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def _as_csv(rows: list[Row]) -> str:
    content = io.StringIO()
    writer = csv.DictWriter(content, METRICS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()

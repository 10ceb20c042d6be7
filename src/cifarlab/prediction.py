"""Pictures in, ranked classes out, with the model, preparation and class names that were stored together."""

import csv
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from cifarlab.errors import UserError
from cifarlab.familiarity import score
from cifarlab.files import write_atomic
from cifarlab.pictures import read_picture
from cifarlab.preparation import Preparation

if TYPE_CHECKING:
    from cifarlab.run import Run

BATCH_SIZE = 64
DECODING_THREADS = min(4, os.cpu_count() or 1)  # Pillow decodes without Python's lock
# Libraries choose their arithmetic by the size of a batch, and probabilities then differ by up to 1e-5. Measured on
# CPUs, the choice is one from 8 pictures on; on accelerators every size may have its own, so there is one size only.
CPU_BATCH_MULTIPLE = 16
PICTURES_AHEAD = 2 * BATCH_SIZE  # decoded, or being decoded, while the network works: this bounds the memory
CSV_COLUMNS = ("path", "rank", "class", "probability", "error", "note")
UNLIKE = "unlike the training pictures"

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
Pictures = Picture | Sequence[Picture]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ranked:
    """One class a picture may be of; `probability` is 0..1."""

    index: int
    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What was found for one picture: classes from the most probable on, or the reason why there are none.

    `unlike_training` is True for a picture unlike those that the network was trained on, whose classes are a guess;
    None where nothing is known of it: the run was not calibrated, or on too few pictures, or there is an error.
    """

    path: str | None
    error: str | None
    predictions: tuple[Ranked, ...]
    unlike_training: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """{path, error, predictions: [{index, class, probability}], unlike_training}"""
        ranked = [
            {"index": r.index, "class": r.class_name, "probability": r.probability} for r in self.predictions
        ]
        return {
            "path": self.path,
            "error": self.error,
            "predictions": ranked,
            "unlike_training": self.unlike_training,
        }


class Predictor:
    """Classifies pictures with a trained network. Made by `load_predictor`, or from the three parts.

    Args:
        model: float32 (N, 3, H, W) -> logits (N, classes); it is put into evaluation mode, where it is.
        preparation: the one that was stored with the weights; it knows the network's size.
        classes: the names, in the order of the logits.
        calibration: the temperature and the threshold that `cifarlab.calibration.calibrate` found, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        preparation: Preparation,
        classes: Sequence[str],
        calibration: dict[str, Any] | None = None,
    ) -> None:
        self.model = model.eval()
        self.preparation = preparation
        self.classes = tuple(classes)
        self.calibration = calibration
        self.device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))

    def predict(self, pictures: Pictures, top: int = 3, progress: Progress | None = None) -> list[Prediction]:
        """The `top` most probable classes of each picture, in the order given.

        A picture's probabilities are the same to 1e-6 on its own and in any company. A picture that cannot be read
        gets a `Prediction` with an `error`, and the rest go on.

        Args:
            pictures: the path of a picture file, a Pillow image, a uint8 array (H, W, 3) or (N, H, W, 3), RGB, of
                any size; or a list of any of these.
            top: 1 or more; at most all classes are given.
            progress: called as `progress(done, total)` after each batch, in pictures.

        Raises:
            UserError: when `top` is below 1 or an array is not of pictures.
        """
        singles = _one_by_one(pictures)
        predictions = []
        for done, prediction in enumerate(self.stream(singles, top), start=1):
            predictions.append(prediction)
            if progress and (done % BATCH_SIZE == 0 or done == len(singles)):
                progress(done, len(singles))
        return predictions

    def stream(self, pictures: Iterable[Picture], top: int = 3) -> Iterator[Prediction]:
        """As `predict`, one prediction after the other: any number of pictures in bounded memory."""
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise UserError(f"top should be a whole number from 1 to {len(self.classes)}, {top!r} given")
        return self._stream(pictures, top)

    def _answers(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, bool | None]]:
        """uint8 (N, H, W, 3) of the network's size -> of each: probabilities float64 (classes,), `unlike_training`."""
        multiple = CPU_BATCH_MULTIPLE if self.device.type == "cpu" else BATCH_SIZE
        filled = np.zeros((len(images) + -len(images) % multiple, *images.shape[1:]), np.uint8)
        filled[: len(images)] = images
        inputs = torch.from_numpy(filled).to(self.device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            logits = self.model(self.preparation(inputs))[: len(images)].double().cpu()
        known = self.calibration
        if known is None:
            return zip(torch.softmax(logits, dim=1).numpy(), repeat(None), strict=False)
        probabilities = torch.softmax(logits / (known["temperature"] or 1.0), dim=1).numpy()
        if known["threshold"] is None:
            return zip(probabilities, repeat(None), strict=False)
        unlike = score(logits.numpy(), known["rule"]) < known["threshold"]
        return zip(probabilities, unlike.tolist(), strict=True)

    def _stream(self, pictures: Iterable[Picture], top: int) -> Iterator[Prediction]:
        decoded = self._decode(pictures)
        while batch := list(islice(decoded, BATCH_SIZE)):
            good = [image for _, image in batch if isinstance(image, np.ndarray)]
            answers = self._answers(np.stack(good)) if good else iter(())
            for path, image in batch:
                if isinstance(image, str):
                    yield Prediction(path, image, ())
                else:
                    yield self._rank(path, *next(answers), top)

    def _decode(self, pictures: Iterable[Picture]) -> Iterator[tuple[str | None, np.ndarray | str]]:
        """(path, image or error) of each picture, in order, read by a few threads a little ahead of their use."""
        pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")
        waiting: deque[tuple[str | None, Future[np.ndarray | str]]] = deque()
        try:
            for picture in pictures:
                path = os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else None
                waiting.append((path, pool.submit(self._read, picture)))
                if len(waiting) >= PICTURES_AHEAD:
                    path, image = waiting.popleft()
                    yield path, image.result()
            while waiting:
                path, image = waiting.popleft()
                yield path, image.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, picture: Picture) -> np.ndarray | str:
        """uint8 (H, W, 3) of the network's size, or what is wrong with the picture."""
        height, width = self.preparation.height, self.preparation.width
        if isinstance(picture, np.ndarray):
            if picture.shape[:2] == (height, width):
                return picture
            picture = Image.fromarray(picture)
        try:
            return read_picture(picture, height, width, self.preparation.fit)
        except UserError as error:
            return str(error)

    def _rank(
        self, path: str | None, probabilities: np.ndarray, unlike_training: bool | None, top: int
    ) -> Prediction:
        if not np.isfinite(probabilities).all():
            return Prediction(
                path, "the network's answer is not a number: its weights are damaged or diverged", ()
            )
        best = np.argsort(-probabilities, kind="stable")[:top]
        ranked = tuple(Ranked(int(i), self.classes[i], float(probabilities[i])) for i in best)
        return Prediction(path, None, ranked, unlike_training)


def load_predictor(
    run: "Run | str | os.PathLike[str] | None" = None,
    *,
    weights: Literal["best", "last"] | None = None,
    device: str = "cpu",
) -> Predictor:
    """The network of a run, ready for pictures: everything it needs comes from the run directory alone.

    Args:
        run: a run or its directory; None for the weights that come with cifarlab.
        weights: "best" or "last"; None for those that the run's recipe names.
        device: where the network works: "cpu", "cuda", "mps".

    Raises:
        UserError: when none is named and none came with cifarlab, or it is not a run, or has no such weights, or they
            are damaged; when the device is not there.
    """
    from cifarlab.run import Run
    from cifarlab.shipped_run import shipped_run

    opened = shipped_run() if run is None else run if isinstance(run, Run) else Run(Path(run))
    _check_device(device)
    chosen = weights or opened.default_weights
    model, preparation = opened.load_model(chosen, device), opened.load_preparation(chosen)
    return Predictor(model, preparation, opened.classes, opened.calibration_of(chosen))


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build of torch without it
        reason = str(error).splitlines()[0]
        raise UserError(f"device '{device}' cannot be used: {reason} (cpu works everywhere)") from None


def write_csv(predictions: Iterable[Prediction], path: str | os.PathLike[str]) -> None:
    """Write `path, rank, class, probability, error, note`: a row for each ranked class, from rank 1, or for an error.

    The file appears when it is complete. Raises UserError if it cannot be written.
    """
    write_atomic(
        Path(path), chain([_csv_lines([CSV_COLUMNS])], (_csv_lines(_csv_rows(p)) for p in predictions))
    )


def _csv_rows(prediction: Prediction) -> list[tuple[object, ...]]:
    path = prediction.path or ""
    if prediction.error is not None:
        return [(path, "", "", "", prediction.error, "")]
    note = UNLIKE if prediction.unlike_training else ""
    return [
        (path, rank, r.class_name, r.probability, "", note)
        for rank, r in enumerate(prediction.predictions, start=1)
    ]


def _csv_lines(rows: Iterable[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")  # file names may hold bytes that are not UTF-8


def _one_by_one(pictures: Pictures) -> Sequence[Picture]:
    """A list of single pictures, whichever way they were given."""
    if isinstance(pictures, np.ndarray):
        _check_array(pictures, dimensions=(3, 4))
        return [pictures] if pictures.ndim == 3 else list(pictures)
    if isinstance(pictures, (str, os.PathLike, Image.Image)):
        return [pictures]
    pictures = list(pictures)
    for picture in pictures:
        if isinstance(picture, np.ndarray):
            _check_array(picture, dimensions=(3,))
        elif not isinstance(picture, (str, os.PathLike, Image.Image)):
            raise UserError(
                f"a picture should be a path, a Pillow image or a uint8 array, {type(picture).__name__} given"
            )
    return pictures


def _check_array(array: np.ndarray, dimensions: tuple[int, ...]) -> None:
    if (
        array.dtype != np.uint8
        or array.ndim not in dimensions
        or array.shape[-1] != 3
        or 0 in array.shape[-3:]
    ):
        shapes = " or ".join("(N, H, W, 3)" if n == 4 else "(H, W, 3)" for n in dimensions)
        raise UserError(f"an array of pictures should be uint8 {shapes}, {array.dtype} {array.shape} given")

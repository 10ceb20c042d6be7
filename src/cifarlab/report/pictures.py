"""Pictures, heat maps and filters as images inside the page."""

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from cifarlab.gradcam import grad_cam, last_convolution
from cifarlab.report.judged import Judged

LOSSLESS_SIDE = 40  # pixels; larger pictures are stored as lossy thumbnails
THUMBNAIL_SIDE = 96
MAP_SIDE = 16  # finer heat maps are averaged down to this many places a side
LIKELIEST = 5  # classes told of each picture
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # matplotlib's inferno
PICTURE_BYTES = 2_000_000  # for all of a page's pictures and what is told of them
BYTES_TOLD = 160  # class names aside, what the page's data says of a picture


def as_uri(image: np.ndarray) -> str:
    """uint8 (H, W, 3) or (H, W) as a data URI: WebP, lossless for small pictures."""
    picture = Image.fromarray(image)
    small = max(picture.size) <= LOSSLESS_SIDE
    if max(picture.size) > THUMBNAIL_SIDE:
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=small, quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def within_budget(
    shown: Iterable[int], wanted: Iterable[int], images: np.ndarray, n_runs: int
) -> dict[int, str]:
    """Images of all of `shown`, and of `wanted`, in order, as far as the page stays small enough to be mailed."""
    uris = {index: as_uri(images[index]) for index in sorted(set(shown))}
    told = BYTES_TOLD + n_runs * (2 * MAP_SIDE**2 * 4 // 3 + 100)
    spent = sum(len(uri) + told for uri in uris.values())
    for index in wanted:
        if index in uris:
            continue
        uri = as_uri(images[index])
        spent += len(uri) + told
        if spent > PICTURE_BYTES:
            break
        uris[index] = uri
    return uris


def told(judged: Sequence[Judged], indices: Sequence[int]) -> dict[int, dict[str, Any]]:
    """For each picture its label and what each run answers: {t, r: [{p: [[class, probability]], m: [[class, map]]}]}.

    A map is of the class answered, and of the label where that is another; base64 of bytes, row by row.
    """
    answers = [_answers(each, np.array(indices, dtype=np.int64)) for each in judged]
    labels = judged[0].labels
    return {
        index: {"t": int(labels[index]), "r": [each[place] for each in answers]}
        for place, index in enumerate(indices)
    }


def map_shapes(judged: Sequence[Judged]) -> list[tuple[int, int] | None]:
    """(h, w) of each run's heat maps in the page; None for a network without convolutions."""
    return [
        None
        if last_convolution(each.model) is None
        else heat_maps(each, np.array([0]), each.labels[:1]).shape[1:]
        for each in judged
    ]  # type: ignore[return-value]


def heat_maps(judged: Judged, indices: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Grad-CAM uint8 (M, h, w) of each picture for the class beside it; at most `MAP_SIDE` a side."""
    maps = grad_cam(judged.model, judged.inputs(indices), torch.from_numpy(classes).to(judged.device))
    if max(maps.shape[1:]) > MAP_SIDE:
        sides = min(maps.shape[1], MAP_SIDE), min(maps.shape[2], MAP_SIDE)
        maps = torch.nn.functional.adaptive_avg_pool2d(maps[:, None], sides)[:, 0]
    return (maps * 255).round().byte().cpu().numpy()


def overlay(image: np.ndarray, heat: np.ndarray, side: int = 96) -> np.ndarray:
    """uint8 (side, side', 3): the picture in grey, under the heat map's colours."""
    height, width = image.shape[:2]
    size = (side, max(1, round(side * height / width)))
    grey = np.asarray(Image.fromarray(image).convert("L").resize(size, Image.Resampling.NEAREST), float)
    values = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC), float) / 255
    stops = np.linspace(0, 1, len(HEAT))
    colours = np.stack(
        [np.interp(values, stops, [colour[channel] for colour in HEAT]) for channel in range(3)], axis=-1
    )
    return np.rint(0.4 * grey[..., None] + 0.6 * colours).astype(np.uint8)


def tiled(tiles: np.ndarray, columns: int, scale: int, gap: int = 6) -> np.ndarray:
    """uint8 (N, h, w, 3) as one picture, `columns` in a row, each pixel `scale` pixels wide."""
    large = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width = large.shape[:3]
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), 0, np.uint8)
    for place, tile in enumerate(large):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        sheet[top : top + height, left : left + width, :3] = tile
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet


def as_sharp_uri(image: np.ndarray) -> str:
    """uint8 (H, W, 3 or 4) as a data URI, pixel for pixel."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _answers(judged: Judged, indices: np.ndarray) -> list[dict[str, Any]]:
    likeliest = np.argsort(-judged.probabilities[indices], axis=1, kind="stable")[:, :LIKELIEST]
    found: list[dict[str, Any]] = [
        {"p": [[int(k), round(float(judged.probabilities[index, k]), 4)] for k in best]}
        for index, best in zip(indices, likeliest, strict=True)
    ]
    if len(indices) and last_convolution(judged.model) is not None:
        predicted, labels = judged.predicted[indices], judged.labels[indices]
        maps = [heat_maps(judged, indices, classes) for classes in (predicted, labels)]
        for place, each in enumerate(found):
            each["m"] = [[int(predicted[place]), _packed(maps[0][place])]]
            if predicted[place] != labels[place]:
                each["m"].append([int(labels[place]), _packed(maps[1][place])])
    return found


def _packed(heat: np.ndarray) -> str:
    return base64.b64encode(heat.tobytes()).decode()

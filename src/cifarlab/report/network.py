"""Into the network: where it looks (Grad-CAM) and what its first layer looks for."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from cifarlab import text
from cifarlab.gradcam import last_convolution
from cifarlab.models.airbench import Whitening
from cifarlab.report.judged import Judged
from cifarlab.report.pictures import as_sharp_uri, as_uri, heat_maps, overlay, tiled

EXAMPLES = 6  # hits, and as many mistakes
MOST_FILTERS = 128
SHEET_WIDTH = 640  # pixels, about


@dataclass(frozen=True)
class Heat:
    """A picture, and heat maps beside it: (what for, image)."""

    index: int
    title: str
    maps: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Filters:
    sheet: str
    words: str
    sentence: str


def heat_examples(judged: Judged) -> tuple[tuple[Heat, ...], tuple[Heat, ...]]:
    """The surest hits, each of another class, and the surest mistakes; none for a network without convolutions."""
    if last_convolution(judged.model) is None:
        return (), ()
    surest = np.argsort(-judged.sureness, kind="stable")
    hit_of_class: dict[int, int] = {}
    for index in surest[judged.is_right[surest]].tolist():
        hit_of_class.setdefault(int(judged.labels[index]), index)
    wrong = surest[~judged.is_right[surest]].tolist()
    return _heats(judged, list(hit_of_class.values())[:EXAMPLES]), _heats(judged, wrong[:EXAMPLES])


def first_filters(judged: Judged) -> Filters:
    """Weights of the first layer as pictures: grey is 0, a filter's largest weight is at full strength."""
    name, tiles, total = _first_weights(judged)
    largest = np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)
    shades = np.rint(127.5 + 127.5 * tiles / np.maximum(largest, 1e-12)).astype(np.uint8)
    columns = min(16 if len(tiles) > 32 and tiles.shape[1] <= 12 else 8, len(tiles))
    scale = max(1, SHEET_WIDTH // columns // tiles.shape[2] - 1)
    height, width = tiles.shape[1:3]
    some = "" if total == len(tiles) else f" the first {len(tiles)} of"
    return Filters(
        sheet=as_sharp_uri(tiled(shades, columns, scale)),
        words=f"{len(tiles)} filters of {height} by {width} pixels",
        sentence=f"Shown:{some} {text.count(total, 'filter')} of {name}, {height}×{width} pixels in red, green and"
        " blue. Grey is 0; each is scaled to its own largest weight.",
    )


def _heats(judged: Judged, indices: list[int]) -> tuple[Heat, ...]:
    if not indices:
        return ()
    places, classes = np.array(indices), judged.run.classes
    answered = heat_maps(judged, places, judged.predicted[places])
    labelled = heat_maps(judged, places, judged.labels[places])
    heats = []
    for place, index in enumerate(indices):
        true, answer = classes[judged.labels[index]], classes[judged.predicted[index]]
        maps = [(answer, answered[place])] + ([(true, labelled[place])] if true != answer else [])
        images = tuple(
            (
                f"for {name}" if heat.any() else f"for {name}: no place speaks for it",
                _over(judged, index, heat),
            )
            for name, heat in maps
        )
        heats.append(Heat(index, true if true == answer else f"{true}, taken for {answer}", images))
    return tuple(heats)


def _over(judged: Judged, index: int, heat: np.ndarray) -> str:
    return as_uri(overlay(judged.images[index], heat))


def _first_weights(judged: Judged) -> tuple[str, np.ndarray, int]:
    """The layer's name, float (N, h, w, 3) of at most `MOST_FILTERS`, and how many there are."""
    layers = [
        (name, layer)
        for name, layer in judged.model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear | Whitening)
    ]
    name, first = layers[0]
    weights = first.state_dict()["weight"].float().cpu().numpy()
    if not isinstance(first, nn.Linear):
        return f"the convolution {name}", weights[:MOST_FILTERS].transpose(0, 2, 3, 1), len(weights)
    height, width = (
        judged.preparation.height,
        judged.preparation.width,
    )  # flattened as height, width, channels
    shown = weights[: MOST_FILTERS // 2].reshape(-1, height, width, 3)
    return f"the dense layer {name}", shown, len(weights)

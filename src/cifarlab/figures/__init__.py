"""Figures: each one function, data in, matplotlib `Figure` out. Nothing draws on a screen or keeps state.

`named` says where the data of each figure come from that `cifarlab figure` draws.
"""

from cifarlab.figures.confusion import confusion_matrix
from cifarlab.figures.curves import group_curves, learning_curves
from cifarlab.figures.grids import class_rows, picture_blocks, picture_grid, predicted_pictures
from cifarlab.figures.intervals import Interval, intervals
from cifarlab.figures.probabilities import picture_probabilities
from cifarlab.figures.search import range_test_figure, search_figure
from cifarlab.figures.settings import values_against
from cifarlab.figures.style import BLUE, ORANGE, save_figure

__all__ = [
    "BLUE",
    "ORANGE",
    "Interval",
    "class_rows",
    "confusion_matrix",
    "group_curves",
    "intervals",
    "learning_curves",
    "picture_blocks",
    "picture_grid",
    "picture_probabilities",
    "predicted_pictures",
    "range_test_figure",
    "save_figure",
    "search_figure",
    "values_against",
]

"""Figures are checked for what they say; how they look was judged by eye."""

from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from cifarlab.errors import UserError
from cifarlab.figures import (
    BLUE,
    ORANGE,
    class_rows,
    confusion_matrix,
    learning_curves,
    picture_grid,
    save_figure,
)

CLASSES = ("airplane", "automobile", "bird")


def metrics(epochs: int, validation: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 2.0 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "validation_loss": 2.5 / epoch if validation else None,
            "validation_accuracy": 1 - 0.6 / epoch if validation else None,
        }
        for epoch in range(1, epochs + 1)
    ]


def lines(axes: Axes) -> dict[str, Any]:
    return {
        str(line.get_label()): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")
    }


def legend_names(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for part in (figure, *figure.axes) for text in part.texts]


def assert_nothing_is_cut(figure: Figure) -> None:
    figure.canvas.draw()
    page, drawn = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= page.x1 and drawn.y1 <= page.y1, (drawn, page)


def images(number: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (number, 8, 8, 3), np.uint8), np.arange(number, dtype=np.int64) % len(
        CLASSES
    )


def test_curves_are_loss_above_accuracy_below_in_blue_and_orange() -> None:
    figure = learning_curves(metrics(40), title="vgg3, seed 0", best_epoch=37)
    loss, accuracy = figure.axes
    assert loss.get_position().y0 > accuracy.get_position().y1
    assert (loss.get_ylabel(), accuracy.get_ylabel(), accuracy.get_xlabel()) == ("loss", "accuracy", "epoch")
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        drawn = lines(axes)
        assert {name: line.get_color() for name, line in drawn.items()} == {
            "train": BLUE,
            "validation": ORANGE,
        }
        for name, line in drawn.items():
            assert list(line.get_xdata()) == list(range(1, 41))
            assert list(line.get_ydata()) == [row[f"{name}_{quantity}"] for row in metrics(40)]
    assert legend_names(figure) == ["train", "validation"]
    assert "vgg3, seed 0" in words(figure)
    assert "best epoch 37: 0.0676" in words(figure)
    assert "best epoch 37: 98.38 %" in words(figure)
    assert_nothing_is_cut(figure)


@pytest.mark.parametrize("epochs", [1, 2, 7, 29, 30, 31, 100, 125, 400])
def test_epochs_are_whole_and_start_at_1(epochs: int) -> None:
    figure = learning_curves(metrics(epochs), title="t", best_epoch=epochs)
    figure.canvas.draw()
    accuracy = figure.axes[1]
    ticks = accuracy.get_xticks()
    assert ticks[0] == 1 and ticks[-1] <= epochs and len(set(ticks)) == len(ticks) <= 13
    assert all(float(tick).is_integer() for tick in ticks)
    assert all(label.get_text().endswith(" %") for label in accuracy.get_yticklabels())
    assert all("." not in label.get_text() for label in accuracy.get_yticklabels())
    assert len({label.get_text() for label in accuracy.get_yticklabels()}) == len(accuracy.get_yticks())
    assert all(line.get_marker() == "o" for line in lines(accuracy).values()) == (epochs <= 30)
    assert_nothing_is_cut(figure)


def test_validation_that_is_missing_is_left_out_and_gaps_stay_gaps() -> None:
    assert legend_names(learning_curves(metrics(5, validation=False), title="t")) == ["train"]
    rows = metrics(4)
    rows[1]["validation_loss"], rows[2]["validation_loss"] = None, float("inf")
    drawn = lines(learning_curves(rows, title="t").axes[0])["validation"].get_ydata()
    np.testing.assert_array_equal(drawn, [2.5, np.nan, np.nan, 2.5 / 4])
    assert_nothing_is_cut(learning_curves([], title="before the first epoch"))


@pytest.mark.parametrize("name", ["test", "test (used as validation)"])
def test_a_test_set_used_as_validation_is_called_that(name: str) -> None:
    figure = learning_curves(metrics(3), title="t", validation_name=name)
    assert legend_names(figure) == ["train", "test (used as validation)"]


def test_wild_first_epochs_do_not_press_the_curves_flat() -> None:
    rows = metrics(100)
    rows[0]["validation_loss"] = 5000.0
    assert learning_curves(rows, title="t").axes[0].get_ylim()[1] < 10


def test_a_long_title_is_not_cut() -> None:
    assert_nothing_is_cut(
        learning_curves(metrics(3), title="a run with a name of many words, seed 12, on cifar10 " * 2)
    )


def test_the_grid_shows_the_first_pictures_with_their_names() -> None:
    pictures, labels = images(20)
    figure = picture_grid(pictures, labels, CLASSES, 3, 3, "the first nine")
    (axes,) = figure.axes
    shown = [image for image in axes.get_images() if isinstance(image, AxesImage)]
    assert len(shown) == 9
    for index, image in enumerate(shown):
        np.testing.assert_array_equal(image.get_array(), pictures[index])
        assert image.get_interpolation() == "nearest"
    lefts, bottoms = [image.get_extent()[0] for image in shown], [image.get_extent()[2] for image in shown]
    assert lefts[0] < lefts[1] < lefts[2] and lefts[3] == lefts[0] and bottoms[0] == bottoms[2] > bottoms[3]
    assert [text.get_text() for text in axes.texts] == [CLASSES[label] for label in labels[:9]]
    assert_nothing_is_cut(figure)
    assert len(picture_grid(pictures[:2], labels[:2], CLASSES).axes[0].get_images()) == 2


def test_a_picture_is_drawn_upright_in_its_own_colours(tmp_path: Path) -> None:
    picture = np.zeros((1, 2, 2, 3), np.uint8)
    picture[0, 0, 0], picture[0, 1, 1] = (255, 0, 0), (0, 0, 255)
    save_figure(picture_grid(picture, np.array([0]), CLASSES, 1, 1), tmp_path / "one.png")
    drawn = np.asarray(Image.open(tmp_path / "one.png").convert("RGB")).reshape(-1, 3)
    red, blue = (np.flatnonzero((drawn == colour).all(axis=1)) for colour in ((255, 0, 0), (0, 0, 255)))
    assert len(red) > 5000 and len(blue) > 5000
    assert red.mean() < blue.mean()  # above


def test_each_class_has_a_row_of_its_own_pictures() -> None:
    pictures, labels = images(31)
    figure = class_rows(pictures, labels, CLASSES, per_class=4, seed=3, title="four of each")
    shown = figure.axes[0].get_images()
    assert len(shown) == 12
    found = [int(np.flatnonzero((pictures == image.get_array()).all(axis=(1, 2, 3)))[0]) for image in shown]
    assert [int(labels[index]) for index in found] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(found)) == 12
    assert [text.get_text() for text in figure.axes[0].texts] == list(CLASSES)
    assert_nothing_is_cut(figure)
    again, other = (class_rows(pictures, labels, CLASSES, 4, seed).axes[0].get_images() for seed in (3, 4))
    assert all((a.get_array() == b.get_array()).all() for a, b in zip(shown, again, strict=True))
    assert not all((a.get_array() == b.get_array()).all() for a, b in zip(shown, other, strict=True))
    assert_nothing_is_cut(
        class_rows(pictures, labels, CLASSES, per_class=1, title="one of each class, with its name")
    )


def test_the_confusion_matrix_has_counts_in_cells_and_shares_as_colour() -> None:
    matrix = np.array([[90, 10, 0], [5, 15, 0], [0, 0, 0]])
    figure = confusion_matrix(matrix, CLASSES, "test, 120 pictures")
    axes = figure.axes[0]
    cells = {tuple(int(v) for v in text.get_position()): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "90", (1, 0): "10", (0, 1): "5", (1, 1): "15"}  # (predicted, true)
    np.testing.assert_allclose(axes.get_images()[0].get_array(), [[0.9, 0.1, 0], [0.25, 0.75, 0], [0, 0, 0]])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert_nothing_is_cut(figure)


def test_names_with_signs_of_mathematics_are_names(tmp_path: Path) -> None:
    names = ("a$b$", "$\\frac", "a_b^c of more than fourteen letters")
    pictures, labels = images(6)
    for figure in (
        picture_grid(pictures, labels, names, 2, 3, "$\\bad"),
        class_rows(pictures, labels, names, 2, title="$\\bad"),
        confusion_matrix(np.eye(3, dtype=int), names, "$\\bad"),
        learning_curves(metrics(2), title="$\\bad"),
    ):
        save_figure(figure, tmp_path / "figure.png")
        assert_nothing_is_cut(figure)


def test_figures_are_written_whole_opaque_and_by_suffix(tmp_path: Path) -> None:
    figure = learning_curves(metrics(3), title="t")
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")):
        save_figure(figure, tmp_path / f"curves{suffix}")
        assert (tmp_path / f"curves{suffix}").read_bytes().startswith(start)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.convert("RGBA").getextrema()[3] == (255, 255)
        assert image.width >= 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.PDF", "curves.png", "curves.svg"]
    for name, given in (("curves.jpg", "'.jpg'"), ("curves", "none")):
        with pytest.raises(
            UserError, match=rf"written as \.png, \.svg or \.pdf, by its suffix; .* has {given}"
        ):
            save_figure(figure, tmp_path / name)
    with pytest.raises(UserError, match="cannot write"):
        save_figure(figure, tmp_path / "no" / "curves.png")


def test_curves_are_quick_enough_to_be_drawn_after_every_epoch(tmp_path: Path) -> None:
    rows, seconds = metrics(400), []  # of the processor: the machine may have other work
    for _ in range(5):
        start = thread_time()
        save_figure(learning_curves(rows, title="t", best_epoch=399), tmp_path / "curves.png")
        seconds.append(thread_time() - start)
    assert min(seconds) < 0.4

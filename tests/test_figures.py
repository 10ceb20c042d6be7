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
    group_curves,
    learning_curves,
    picture_blocks,
    picture_grid,
    picture_probabilities,
    predicted_pictures,
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
    assert "epoch 37, of the lowest loss: 98.38 %" in words(figure)
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


@pytest.mark.parametrize(("epochs", "wild"), [(3, 1), (12, 2), (100, 5)])
def test_wild_epochs_do_not_press_the_curves_flat_and_are_told(epochs: int, wild: int) -> None:
    rows = metrics(epochs)
    for row in rows[:wild]:
        row["validation_loss"] = 5000.0
    figure = learning_curves(rows, title="t")
    assert figure.axes[0].get_ylim()[1] < 10
    assert [text for text in words(figure) if "off the scale: up to 5,000 at epoch 1" in text]
    assert_nothing_is_cut(figure)


def test_an_ordinary_fall_of_the_loss_is_shown_whole() -> None:
    figure = learning_curves(metrics(100), title="t")
    assert figure.axes[0].get_ylim()[1] > 2.5
    assert not [text for text in words(figure) if "off the scale" in text]


def test_groups_are_a_mean_and_a_band() -> None:
    one, two, alone = metrics(5), metrics(7), metrics(9, validation=False)
    for row in two:
        row["validation_loss"] += 1.0
    figure = group_curves({"a$_b": [one, two], "dense": [alone], "third": [metrics(2)]}, title="t", note="n")
    loss = figure.axes[0]
    assert legend_names(figure) == ["a$_b (2 runs)", "dense", "third"]
    drawn = lines(loss)
    np.testing.assert_allclose(
        drawn["a$_b (2 runs)"].get_ydata(), [row["validation_loss"] + 0.5 for row in one]
    )
    np.testing.assert_allclose(drawn["dense"].get_ydata(), [row["train_loss"] for row in alone])
    (band,) = loss.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (one[-1]["validation_loss"], two[0]["validation_loss"])
    assert loss.get_ylabel() == "validation loss"
    assert (
        len({str(line._unscaled_dash_pattern) for line in drawn.values()}) == 3
    )  # colour is not the only sign
    assert_nothing_is_cut(figure)
    assert heights.max() <= loss.get_ylim()[1]
    two_groups = group_curves({"a": [one], "b" * 200: [two]}, title="t")
    assert len(two_groups.axes[0].get_lines()) == 4  # training too
    assert_nothing_is_cut(two_groups)


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
    assert lefts[0] < lefts[1] < lefts[2] and lefts[3] == lefts[0] and bottoms[0] == bottoms[2] < bottoms[3]
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


@pytest.mark.parametrize("many", [2, 3, 43])
def test_any_number_of_classes_with_long_names_fits(many: int) -> None:
    names = [f"a sign whose name is long, number {index}" for index in range(many)]
    pictures, _ = images(24)
    labels = np.arange(24) % many
    predicted = (labels + np.arange(24) % 2) % many
    for figure in (
        predicted_pictures(pictures, labels, predicted, names, 3, 8, "t"),
        class_rows(pictures, labels, names, 2, title="t"),
        confusion_matrix(np.eye(many, dtype=int) * 12345, names, "t"),
        picture_probabilities(pictures[:1], np.full((1, many), 1 / many), labels[:1], names, "t"),
    ):
        assert_nothing_is_cut(figure)
        assert f"ber {many - 1 if many < 13 else 9}"[-4:] in " ".join(words(figure) + ticks(figure))


def ticks(figure: Figure) -> list[str]:
    return [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]


def test_predictions_are_told_by_colour_and_by_mark() -> None:
    pictures, labels = images(4)
    figure = predicted_pictures(pictures, labels, np.array([0, 2, 2, 0]), CLASSES, 2, 2, "t")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [
        "✓ airplane", "(airplane)", "✗ bird", "(automobile)", "✓ bird", "(bird)", "✓ airplane", "(airplane)",
    ]  # fmt: skip
    assert [patch.get_edgecolor() == axes.patches[0].get_edgecolor() for patch in axes.patches] == [
        True, False, True, True,
    ]  # fmt: skip
    assert_nothing_is_cut(figure)


def test_a_picture_stands_beside_its_probabilities() -> None:
    pictures, labels = images(2)
    chances = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    figure = picture_probabilities(pictures, chances, labels, CLASSES, "t")
    assert len(figure.axes) == 4
    for row in range(2):
        picture, bars = figure.axes[2 * row], figure.axes[2 * row + 1]
        np.testing.assert_array_equal(picture.get_images()[0].get_array(), pictures[row])
        assert [bar.get_width() for bar in bars.patches] == list(chances[row])
        assert [text.get_text() for text in bars.get_yticklabels()] == list(CLASSES)
        assert bars.texts[row].get_text() == f"{100 * chances[row, row]:.1f} %  true class"
    assert "✗ airplane" in words(figure) and "(automobile)" in words(figure)
    many = np.arange(20) / 190
    shown = picture_probabilities(pictures[:1], many[None], labels[:1], [f"c{i}" for i in range(20)]).axes[1]
    assert [text.get_text() for text in shown.get_yticklabels()] == [f"c{i}" for i in range(19, 9, -1)]
    assert "the 10 highest of 20" in shown.get_xlabel()


def test_blocks_show_the_same_places_side_by_side() -> None:
    pictures, _ = images(4)
    figure = picture_blocks({"original": pictures, "augmented": 255 - pictures}, 2, 2, "t")
    (axes,) = figure.axes
    shown = axes.get_images()
    assert [text.get_text() for text in axes.texts] == ["original", "augmented"]
    for index in range(4):
        left, right = shown[index], shown[4 + index]
        np.testing.assert_array_equal(np.asarray(right.get_array()), 255 - np.asarray(left.get_array()))
        assert (
            left.get_extent()[2:] == right.get_extent()[2:] and left.get_extent()[0] < right.get_extent()[0]
        )
    assert_nothing_is_cut(figure)


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_the_same_figure_is_the_same_file(tmp_path: Path, format: str) -> None:
    pictures, labels = images(2)
    for name in ("one", "two"):
        save_figure(picture_grid(pictures, labels, CLASSES, 1, 2, "t"), tmp_path / f"{name}.{format}")
    content = (tmp_path / f"one.{format}").read_bytes()
    assert content == (tmp_path / f"two.{format}").read_bytes()
    if format == "svg":
        assert ">automobile<" in content.decode()  # text, not outlines
    if format == "pdf":
        assert b"/FontFile2" in content  # TrueType: text that can be searched


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

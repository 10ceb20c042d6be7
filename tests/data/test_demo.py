"""The embedded demo set: the same bytes everywhere, balanced, neither trivial nor lost when the cache is."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import StandardScaler

from cifarlab.data import Source, Split, demo, open_source
from cifarlab.data.sources import SPLITS

Drawn = tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Both splits drawn anew, and the processor's time that took in seconds."""
    start = time.process_time()
    splits = {split: demo.generate(split) for split in SPLITS}
    return splits, time.process_time() - start


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cifarlab" / "decoded"


@pytest.fixture
def drawings(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which splits were drawn, in order; the drawing itself is taken from `drawn` to save time."""
    done: list[str] = []

    def generate(split: str) -> tuple[np.ndarray, np.ndarray]:
        done.append(split)
        return drawn[0][split]

    monkeypatch.setattr(demo, "generate", generate)
    return done


def test_the_pictures_have_the_pinned_checksums(drawn: Drawn) -> None:
    both = hashlib.sha256()
    for split in SPLITS:
        images, labels = drawn[0][split]
        content = images.tobytes() + labels.tobytes()
        assert hashlib.sha256(content).hexdigest() == demo.CHECKSUMS[split]
        both.update(content)
    assert demo.open_demo().checksum == "sha256:" + both.hexdigest()


def test_drawing_both_splits_takes_under_five_seconds(drawn: Drawn) -> None:
    assert drawn[1] < 5.0  # of the processor's time: what else the machine does is not counted


def test_drawing_depends_on_nothing_but_the_draws(drawn: Drawn) -> None:
    labels = np.arange(20) % 10
    np.random.seed(0)
    first = demo.draw(labels, demo.Draws(7))
    np.random.seed(1)
    assert np.array_equal(first, demo.draw(labels, demo.Draws(7)))
    assert not np.array_equal(first, demo.draw(labels, demo.Draws(8)))


def test_draws_keep_their_limits_and_use_them_all() -> None:
    draws = demo.Draws(0)
    assert np.unique(draws.between(-3, 4, 40, 50)).tolist() == list(range(-3, 5))
    assert np.unique(draws.below(7, 1000)).tolist() == list(range(7))
    assert len(np.unique(draws.bytes(100, 100))) == 256


def test_every_stencil_has_a_clear_border_and_a_solid_part() -> None:
    for name in (*demo.CLASSES, "bar", "dot"):
        stencil = demo.stencil(name)
        # What lies off the stencil takes the value of its border, so a figure that touches it would smear.
        assert not any(edge.any() for edge in (stencil[0], stencil[-1], stencil[:, 0], stencil[:, -1])), name
        assert stencil.max() == demo.OPAQUE and stencil.min() == 0, name


def test_no_class_is_another_ones_mirror_image() -> None:
    stencils = [demo.stencil(name).astype(int) for name in demo.CLASSES]
    for i, one in enumerate(stencils):
        for other in stencils[i + 1 :]:
            for seen in (other, other[:, ::-1]):
                assert np.abs(one - seen).mean() > demo.OPAQUE / 20


def test_the_source_has_the_layout_of_cifar10(cache: Path, drawings: list[str]) -> None:
    source = open_source("demo")
    assert isinstance(source, Source) and source.name == "demo"
    assert len(source.classes) == len(set(source.classes)) == 10
    assert not drawings, "opening a source must not draw, and so must not hand out test pictures"
    for split, size in zip(SPLITS, (5_000, 2_000), strict=True):
        content = source.load(split)
        assert isinstance(content, Split)
        assert content.images.shape == (size, 32, 32, 3) and content.images.dtype == np.uint8
        assert content.images.flags.c_contiguous and content.images.flags.writeable
        assert content.labels.shape == (size,) and content.labels.dtype == np.int64
        assert np.bincount(content.labels).tolist() == [size // 10] * 10
    assert drawings == ["train", "test"]


def test_pictures_are_all_different_within_and_across_splits(drawn: Drawn) -> None:
    pictures = [picture.tobytes() for split in drawn[0].values() for picture in split[0]]
    assert len(set(pictures)) == len(pictures)


def test_a_second_load_reads_the_cache_and_gives_the_same(cache: Path, drawings: list[str]) -> None:
    first = demo.open_demo().load("test")
    second = demo.open_demo().load("test")
    assert drawings == ["test"]
    assert [path.name for path in cache.iterdir()] == ["demo-test.npy"]
    assert np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels)
    assert second.images.flags.c_contiguous


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _other_array(path: Path) -> None:
    np.save(path, np.zeros((3, 3), dtype=np.float32))


@pytest.mark.parametrize("damage", [_flip_a_bit, _cut_short, _empty, _pickle, _other_array])
def test_a_damaged_cache_is_made_again(
    damage: Callable[[Path], None], cache: Path, drawings: list[str], drawn: Drawn
) -> None:
    demo.open_demo().load("test")
    path = cache / "demo-test.npy"
    intact = path.read_bytes()
    damage(path)
    content = demo.open_demo().load("test")
    assert drawings == ["test", "test"]
    assert np.array_equal(content.images, drawn[0]["test"][0])
    assert path.read_bytes() == intact


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawings: list[str]
) -> None:
    in_the_way = tmp_path / "a-file"  # a folder's permissions would not stop the superuser
    in_the_way.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    for _ in range(2):
        assert len(demo.open_demo().load("test").images) == 2_000
    assert drawings == ["test", "test"]


def test_pictures_that_come_out_wrong_are_refused_and_not_cached(
    cache: Path, monkeypatch: pytest.MonkeyPatch, drawn: Drawn
) -> None:
    images, labels = drawn[0]["test"]
    altered = images.copy()
    altered[0, 0, 0, 0] ^= 1
    monkeypatch.setattr(demo, "generate", lambda split: (altered, labels))
    with pytest.raises(RuntimeError, match="came out wrong"):
        demo.open_demo().load("test")
    assert not cache.exists()


def test_a_linear_model_stays_under_60_percent(drawn: Drawn) -> None:
    (images, labels), (test_images, test_labels) = drawn[0]["train"], drawn[0]["test"]
    scaler = StandardScaler()
    inputs = scaler.fit_transform(images.reshape(len(images), -1).astype(np.float32))
    model = SGDClassifier(loss="log_loss", alpha=0.1, max_iter=3, tol=None, random_state=0)
    model.fit(inputs, labels)
    accuracy = model.score(
        scaler.transform(test_images.reshape(len(test_images), -1).astype(np.float32)), test_labels
    )
    assert accuracy < 0.60

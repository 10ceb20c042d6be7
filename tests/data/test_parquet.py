"""CIFAR-10 as the Parquet files of Hugging Face."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_cifar import PER_BATCH, SmallData

from cifarlab.data import open_source
from cifarlab.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_for_cifar10")

ARCHIVE_ORDER = np.concatenate([np.arange(PER_BATCH) + PER_BATCH * i for i in (3, 2, 1, 4, 0)])
TEST = np.arange(5 * PER_BATCH, 6 * PER_BATCH)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def write_rows(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": png(image), "path": None} for image in images]
    parquet.write_table(pyarrow.table({"img": pictures, "label": labels.tolist()}), path)


def write(parent: Path, small: SmallData, train: np.ndarray = ARCHIVE_ORDER, shards: int = 1) -> Path:
    folder = parent / "plain_text"
    for i, part in enumerate(np.array_split(train, shards)):
        write_rows(folder / f"train-{i:05d}-of-{shards:05d}.parquet", small.images[part], small.labels[part])
    write_rows(folder / "test-00000-of-00001.parquet", small.images[TEST], small.labels[TEST])
    return folder


def assert_right(small: SmallData, given: Path) -> None:
    source = open_source("cifar10", given)
    assert source.checksum == small.dataset.content.checksum
    for split, part in (("train", slice(0, 5 * PER_BATCH)), ("test", TEST)):
        content = source.load(split)
        assert content.images.flags.c_contiguous and content.labels.dtype == np.int64
        assert np.array_equal(content.images, small.images[part])
        assert np.array_equal(content.labels, small.labels[part])


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("train", [ARCHIVE_ORDER, np.arange(5 * PER_BATCH)], ids=["archive", "batches"])
def test_pictures_come_in_the_official_order_whichever_the_files_have(small, tmp_path, train, shards):
    folder = write(tmp_path, small, train, shards)
    assert_right(small, tmp_path)
    assert_right(small, folder)
    assert open_source("cifar10", tmp_path).location == str(folder)


@pytest.mark.parametrize("change", ["pixel", "label", "order", "fewer", "more"])
def test_anything_but_the_official_content_is_refused(small, tmp_path, change):
    train = {"order": ARCHIVE_ORDER[::-1], "fewer": ARCHIVE_ORDER[1:], "more": np.r_[ARCHIVE_ORDER, 0]}
    folder = write(tmp_path, small, train.get(change, ARCHIVE_ORDER))
    images, labels = small.images[ARCHIVE_ORDER].copy(), small.labels[ARCHIVE_ORDER].copy()
    if change == "pixel":
        images[9, 5, 5, 1] ^= 1
        write_rows(folder / "train-00000-of-00001.parquet", images, labels)
    elif change == "label":
        labels[0] = (labels[0] + 1) % 10
        write_rows(folder / "train-00000-of-00001.parquet", images, labels)
    with pytest.raises(UserError, match=r"are not CIFAR-10: |more pictures than CIFAR-10") as caught:
        open_source("cifar10", tmp_path).load("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["cut", "columns", "null", "no picture"])
def test_a_broken_file_is_one_line_that_names_it(small, tmp_path, how):
    path = write(tmp_path, small) / "train-00000-of-00001.parquet"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "columns":
        parquet.write_table(pyarrow.table({"image": [1], "label": [1]}), path)
    else:
        data = None if how == "null" else b"<html>"
        rows = {"img": [{"bytes": data, "path": None}], "label": [1]}
        schema = pyarrow.schema(
            [
                ("img", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
                ("label", pyarrow.int64()),
            ]
        )
        parquet.write_table(pyarrow.table(rows, schema=schema), path)
    with pytest.raises(UserError, match=r"cannot read .*\.parquet|given as bytes is not a picture") as caught:
        open_source("cifar10", tmp_path).load("train")
    assert "\n" not in str(caught.value)


def test_without_pyarrow_it_is_said_how_to_get_it(small, tmp_path, monkeypatch):
    write(tmp_path, small)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"need a library: pip install 'cifarlab\[parquet\]'"):
        open_source("cifar10", tmp_path).load("train")

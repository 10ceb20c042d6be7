"""Keras on the torch backend, for this group of tests alone; its settings are read when it is first imported."""

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("KERAS_HOME", os.path.join(tempfile.gettempdir(), "keras-of-tests"))


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keras's layers, losses and optimisers in double precision for the length of a test."""
    import keras
    from keras.src.backend.common import dtypes

    # As Keras sets it with TensorFlow. On torch its batch norm and its losses would go through float32.
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")

"""Tensors as the bytes of a safetensors file: the library's own bytes, with nothing held twice."""

import numpy as np
import pytest
import safetensors.torch
import torch

from cifarlab.tensor_file import pieces

KINDS = [
    *(torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16),
    *(torch.int16, torch.int8, torch.uint8, torch.bool),
]


def tensors_of_all_kinds() -> dict[str, torch.Tensor]:
    shapes = {"b.vector": (3,), "a.scalar": (), "ä \"'\\\n\x01": (2, 1, 5), "none": (0, 4)}
    return {
        f"{name}{place}": (torch.rand(shape) * 9).to(kind)
        for place, kind in enumerate(KINDS)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("metadata", [None, {"cifarlab": '{"classes": ["é", "\\n"], "epoch": 3}'}])
def test_the_bytes_are_those_of_the_library(metadata: dict[str, str] | None) -> None:
    tensors = tensors_of_all_kinds()
    for some in (tensors, dict(reversed(tensors.items())), {"one": torch.ones(3)}, {}):
        assert b"".join(pieces(some, metadata)) == safetensors.torch.save(some, metadata)


def test_parameters_and_other_layouts_are_written_row_by_row() -> None:
    images = torch.rand(2, 3, 4, 5)
    tensors = {"channels last": images.to(memory_format=torch.channels_last), "part": images[:, 1:, :, ::2]}
    tensors["trained"] = torch.nn.Parameter(images)
    content = safetensors.torch.load(b"".join(pieces(tensors)))
    assert content.keys() == tensors.keys()
    assert all(torch.equal(content[name], tensors[name]) for name in tensors)


def test_what_lies_row_by_row_is_not_copied() -> None:
    tensor = torch.nn.Parameter(torch.rand(100, 10))
    _, piece = pieces({"weight": tensor})
    assert np.frombuffer(piece, np.uint8).ctypes.data == tensor.data_ptr()

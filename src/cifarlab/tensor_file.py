"""Tensors as the bytes of a safetensors file, piece by piece, so that saving them needs next to no memory.

The bytes are those of `safetensors.torch.save`, which holds all of them once more, or twice. The library's `save_file`
does not, but hides from `write_atomic` what that is there for: it has a temporary file of its own, which a kill leaves
behind and which only its owner may read, and tells a full disk in words alone.
The format: https://huggingface.co/docs/safetensors
"""

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

# In the order in which they lie in a file.
_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {kind: place for place, kind in enumerate(_TYPES)}
_ALIGNMENT_BYTES = 8


def pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The file's bytes. What is on another device, or laid out otherwise than row by row, is copied one at a time."""
    names = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))
    yield _header({name: tensors[name] for name in names}, metadata)
    for name in names:
        if tensors[name].numel():
            yield tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """Its length, and as JSON what the file holds and where, up to the next whole place."""
    content: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        content[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    written = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    written += b" " * (-len(written) % _ALIGNMENT_BYTES)
    return len(written).to_bytes(8, "little") + written

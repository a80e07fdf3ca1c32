"""Read the tensors of a sealed safetensors file, each decrypted straight into its final array.

Layout: u64 little-endian header length h, h bytes of JSON, then the tensors' bytes. The JSON maps each name
to ``{"dtype", "shape", "data_offsets": [begin, end]}``, offsets counted from the end of the header, and may
have ``__metadata__``. Source: safetensors format, https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import msgspec
import numpy as np

from cloister.errors import MalformedInput

MAX_HEADER_BYTES = 100_000_000
"""The bound of the safetensors library."""

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind).newbyteorder("<")
    for name, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "F32": np.float32,
        "F64": np.float64,
        # numpy has no such types: their bits, for the engine to reinterpret.
        "BF16": np.uint16,
        "F8_E4M3": np.uint8,
        "F8_E5M2": np.uint8,
    }.items()
}


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_safetensors(sealed: io.RawIOBase) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a safetensors file, little-endian, in the order of the file.

    Args:
        sealed: seekable; its ``readinto`` fills whole buffers, as a SealedFile's does.
    Returns:
        Arrays by name; bfloat16 comes as uint16 and float8 as uint8, their bits unchanged.
    Raises:
        MalformedInput: not safetensors; tensors that overlap, leave gaps, or do not have their shape's size.
    """
    size = sealed.seek(0, io.SEEK_END)
    sealed.seek(0)
    prefix = _read(sealed, 8)
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise MalformedInput(f"safetensors header: {length} bytes do not fit into a file of {size}")
    tensors = _parse(_read(sealed, length), size - 8 - length)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in tensors:
        array = np.empty(tensor.shape, DTYPES[tensor.dtype])
        sealed.seek(8 + length + tensor.data_offsets[0])
        if array.nbytes and sealed.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            raise MalformedInput(f"safetensors: the file ends inside tensor {name[:80]!r}")
        arrays[name] = array
    return arrays


def _parse(document: bytes, data_bytes: int) -> list[tuple[str, _Tensor]]:
    """The tensors in the order of their data, which they must cover without gap or overlap."""
    try:
        fields = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        fields.pop("__metadata__", None)
        tensors = [(name, msgspec.json.decode(raw, type=_Tensor)) for name, raw in fields.items()]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedInput(f"safetensors header: {error}") from error
    tensors.sort(key=lambda item: item[1].data_offsets)
    position = 0
    for name, tensor in tensors:
        begin, end = tensor.data_offsets
        if tensor.dtype not in DTYPES:
            raise MalformedInput(f"safetensors: tensor {name[:80]!r} has unknown dtype {tensor.dtype[:20]!r}")
        if min(tensor.shape, default=0) < 0 or len(tensor.shape) > 32:
            raise MalformedInput(f"safetensors: tensor {name[:80]!r} has an impossible shape")
        expected = math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize
        if begin != position or end - begin != expected or max(tensor.shape, default=0) > 1 << 48:
            raise MalformedInput(f"safetensors: tensor {name[:80]!r} does not lie where its neighbours end")
        position = end
    if position != data_bytes:
        raise MalformedInput(f"safetensors: tensors cover {position} of {data_bytes} bytes")
    return tensors


def _read(sealed: io.RawIOBase, length: int) -> bytes:
    buffer = bytearray(length)
    if length and sealed.readinto(buffer) != length:
        raise MalformedInput("safetensors: the file ends inside its header")
    return bytes(buffer)

"""Read the tensors of a sealed safetensors file, each decrypted straight into its final array.

Layout: u64 little-endian header length h, h bytes of JSON, then the tensors' bytes. The JSON maps each name
to ``{"dtype", "shape", "data_offsets": [begin, end]}``, offsets counted from the end of the header, and may
have ``__metadata__``. Source: safetensors format, https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
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


class TensorEntry(msgspec.Struct, forbid_unknown_fields=True):
    """One tensor of a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TensorIndex:
    """The header of a safetensors file, checked: every tensor lies where it says, without gap or overlap."""

    tensors: tuple[tuple[str, TensorEntry], ...]
    """In the order of their data."""
    metadata: dict[str, str]
    data_offset: int
    """Where the tensors' bytes begin in the file."""


def read_index(sealed: io.RawIOBase) -> TensorIndex:
    """The header of a safetensors file.

    Raises:
        MalformedInput: not safetensors; tensors that overlap, leave gaps, or do not have their shape's size.
    """
    size = sealed.seek(0, io.SEEK_END)
    sealed.seek(0)
    prefix = _read(sealed, 8)
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise MalformedInput(f"safetensors header: {length} bytes do not fit into a file of {size}")
    tensors, metadata = _parse(_read(sealed, length), size - 8 - length)
    return TensorIndex(tuple(tensors), metadata, 8 + length)


def fill_tensor(sealed: io.RawIOBase, offset: int, buffer: memoryview, name: str) -> None:
    """Read one tensor's bytes straight into where they will be used.

    Raises:
        MalformedInput: the file ends before.
    """
    sealed.seek(offset)
    if buffer.nbytes and sealed.readinto(buffer) != buffer.nbytes:
        raise MalformedInput(f"safetensors: the file ends inside tensor {name[:80]!r}")


def read_safetensors(sealed: io.RawIOBase) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a safetensors file, little-endian, in the order of the file.

    Args:
        sealed: seekable; its ``readinto`` fills whole buffers, as a SealedFile's does.
    Returns:
        Arrays by name; bfloat16 comes as uint16 and float8 as uint8, their bits unchanged.
    Raises:
        MalformedInput: not safetensors; tensors that overlap, leave gaps, or do not have their shape's size.
    """
    index = read_index(sealed)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in index.tensors:
        array = np.empty(tensor.shape, DTYPES[tensor.dtype])
        offset = index.data_offset + tensor.data_offsets[0]
        fill_tensor(sealed, offset, array.reshape(-1).view(np.uint8).data, name)
        arrays[name] = array
    return arrays


def _parse(document: bytes, data_bytes: int) -> tuple[list[tuple[str, TensorEntry]], dict[str, str]]:
    """The tensors in the order of their data, which they must cover without gap or overlap; the metadata."""
    try:
        fields = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(fields.pop("__metadata__", b"{}"), type=dict[str, str])
        tensors = [(name, msgspec.json.decode(raw, type=TensorEntry)) for name, raw in fields.items()]
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
    return tensors, metadata


def _read(sealed: io.RawIOBase, length: int) -> bytes:
    buffer = bytearray(length)
    if length and sealed.readinto(buffer) != length:
        raise MalformedInput("safetensors: the file ends inside its header")
    return bytes(buffer)

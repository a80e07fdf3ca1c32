"""Tensor data of the Open Inference Protocol as numpy arrays, and back.

======== ============== ======================================================================
datatype numpy          one element in binary form, little-endian
======== ============== ======================================================================
BOOL     bool           1 byte, 0 or 1
UINT8-64 uint8-64       1, 2, 4, 8 bytes
INT8-64  int8-64        1, 2, 4, 8 bytes
FP16     float16        2 bytes
BF16     float32        2 bytes: the upper half of a float32, which holds each of its values exactly
FP32     float32        4 bytes
FP64     float64        8 bytes
BYTES    object (bytes) 4 bytes of length, then so many bytes
======== ============== ======================================================================

Source: Open Inference Protocol, specification/protocol/inference_rest.md "Tensor Data"; Triton, extension
"binary tensor data".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import MalformedInput
from cloister.serve.oip.nested import MAX_DIMENSIONS, flatten

Array = NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<f4"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_BY_DTYPE = {dtype: name for name, dtype in DATATYPES.items() if name != "BF16"}
_LENGTH = struct.Struct("<I")
_EXACT_FLOAT = 1 << 53


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy type.

    Raises:
        TypeError: the protocol has none.
    """
    if dtype.kind in "USO":
        return "BYTES"
    if dtype.name == "bfloat16":  # of the package ml_dtypes
        return "BF16"
    found = _BY_DTYPE.get(dtype.newbyteorder("<"))
    if found is None:
        raise TypeError(f"no tensor datatype for {dtype}")
    return found


def check_datatype(name: Any) -> str:
    """``name`` if it is a datatype, else ``MalformedInput``."""
    if not isinstance(name, str) or name not in DATATYPES:
        raise MalformedInput(f"unknown datatype; there are {', '.join(DATATYPES)}")
    return name


def parse_shape(value: Any) -> list[int]:
    """The dimensions. One may be -1, and a number stands for one dimension: TorchServe's clients do so.

    Raises:
        MalformedInput: not whole numbers, too many, or more than one -1.
    """
    shape = [value] if type(value) is int else value
    if not isinstance(shape, list | tuple) or not all(type(size) is int for size in shape):
        raise MalformedInput("shape is not a list of whole numbers")
    if len(shape) > MAX_DIMENSIONS:
        raise MalformedInput(f"shape has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are taken")
    if (
        min(shape, default=0) < -1
        or sum(size == -1 for size in shape) > 1
        or max(shape, default=0) >= 1 << 63
    ):
        raise MalformedInput("shape has an impossible size")
    return list(shape)


def decode_json(datatype: str, shape: Sequence[int], data: Any) -> Array:
    """An array from JSON's nested or flat lists.

    Raises:
        MalformedInput: another number of elements than ``shape`` says, or elements of another type.
    """
    flat, _ = flatten(data)
    return _reshape(_convert(datatype, flat), shape)


def decode_nested(datatype: str, data: Any) -> Array:
    """An array from JSON's nested lists, which say its shape themselves.

    Raises:
        MalformedInput: no regular array, or elements of another type.
    """
    flat, lengths = flatten(data)
    array = _convert(datatype, flat)
    return array.reshape(lengths if isinstance(data, list | tuple) else ())


def decode_raw(datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """An array from its binary form: a copy, aligned and writable.

    Raises:
        MalformedInput: another length than datatype and ``shape`` say, or bytes that are no such elements.
    """
    if datatype == "BYTES":
        return _reshape(_objects(_split_elements(raw)), shape)
    dtype = np.dtype("<u2") if datatype == "BF16" else DATATYPES[datatype]
    if len(raw) % dtype.itemsize:
        raise MalformedInput(f"{len(raw)} bytes are no whole number of {datatype} elements")
    if datatype == "BOOL":
        numbers = np.frombuffer(raw, np.uint8)
        if numbers.size and int(numbers.max()) > 1:
            raise MalformedInput("a BOOL element is neither 0 nor 1")
        return _reshape(numbers.astype(np.bool_), shape)
    if datatype == "BF16":
        halves = np.frombuffer(raw, dtype).astype("<u4")
        return _reshape((halves << np.uint32(16)).view("<f4"), shape)
    return _reshape(np.frombuffer(raw, dtype).copy(), shape)


def encode_raw(datatype: str, array: Array) -> bytes:
    """The binary form of an array, row by row.

    Raises:
        TypeError, ValueError: elements that the datatype does not have.
    """
    if datatype == "BYTES":
        parts: list[bytes] = []
        for element in as_bytes(array):
            parts += (_LENGTH.pack(len(element)), element)
        return b"".join(parts)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, DATATYPES[datatype])
    if datatype == "BF16":
        # Round to nearest, ties to even, as hardware does; a NaN must not be rounded to infinity.
        bits = values.view("<u4").astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
        return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()
    return values.tobytes()


def encode_json(array: Array) -> list[Any]:
    """The elements as one flat list for JSON.

    Raises:
        MalformedInput: a BYTES element is not UTF-8, so it can only be sent in binary form.
    """
    if array.dtype.kind not in "USO":
        return array.reshape(-1).tolist()
    try:
        return [element.decode() for element in as_bytes(array)]
    except UnicodeDecodeError as error:
        raise MalformedInput("an output's elements are not text: ask for it as binary data") from error


def as_bytes(array: Array) -> list[bytes]:
    """The elements of an array of text or bytes.

    Raises:
        TypeError: an element is neither.
    """
    found: list[bytes] = []
    for element in array.reshape(-1).tolist():
        if isinstance(element, str):
            found.append(element.encode())
        elif isinstance(element, bytes | bytearray | memoryview):
            found.append(bytes(element))
        else:
            raise TypeError(f"a BYTES element is text or bytes, not {type(element).__name__}")
    return found


def _objects(elements: Sequence[Any]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _reshape(array: Array, shape: Sequence[int]) -> Array:
    known = math.prod(size for size in shape if size != -1)
    fits = array.size == known if -1 not in shape else known > 0 and array.size % known == 0
    if not fits:
        raise MalformedInput(f"shape {list(shape)} does not go with {array.size} elements")
    try:
        return array.reshape(shape)
    except ValueError as error:  # an empty array with sizes that numpy cannot count
        raise MalformedInput(f"shape {list(shape)} is too large") from error


def _split_elements(raw: bytes | memoryview) -> list[bytes]:
    view = memoryview(raw)
    elements: list[bytes] = []
    offset = 0
    while offset < len(view):
        start = offset + _LENGTH.size
        if start > len(view):
            raise MalformedInput("BYTES data ends inside a length")
        offset = start + _LENGTH.unpack_from(view, start - _LENGTH.size)[0]
        if offset > len(view):
            raise MalformedInput("BYTES data ends inside an element")
        elements.append(bytes(view[start:offset]))
    return elements


def _convert(datatype: str, flat: list[Any]) -> Array:
    """Types are looked at first: numpy would take "7" for a number, drop fractions and pad text."""
    types = set(map(type, flat))
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        if not types <= {str, bytes}:
            raise MalformedInput("data of datatype BYTES is not all text")
        try:
            return _objects([item.encode() if isinstance(item, str) else item for item in flat])
        except UnicodeEncodeError as error:
            raise MalformedInput("data of datatype BYTES has a lone surrogate") from error
    if datatype == "BOOL":
        if types <= {bool} or (types <= {int} and set(flat) <= {0, 1}):
            return np.array(flat, dtype)
        raise MalformedInput("data of datatype BOOL is not all true or false")
    if not types <= {int, float}:
        raise MalformedInput(f"data of datatype {datatype} is not all numbers")
    if dtype.kind == "f":
        try:
            with np.errstate(over="ignore"):
                return np.array(flat, dtype)
        except OverflowError as error:
            raise MalformedInput(f"a number is out of the range of {datatype}") from error
    if float in types:
        if not all(abs(item) <= _EXACT_FLOAT and item == int(item) for item in flat):
            raise MalformedInput(f"data of datatype {datatype} is not all whole numbers")
        flat = [int(item) for item in flat]
    limits = np.iinfo(dtype)
    if flat and (min(flat) < limits.min or max(flat) > limits.max):
        raise MalformedInput(f"a number is out of the range of {datatype}")
    return np.array(flat, dtype)

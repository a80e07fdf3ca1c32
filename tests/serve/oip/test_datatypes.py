"""Tensor data as numpy arrays, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient import utils as triton

from cloister.errors import MalformedInput
from cloister.serve.oip.datatypes import (
    DATATYPES,
    as_bytes,
    datatype_of,
    decode_json,
    decode_raw,
    encode_json,
    encode_raw,
    parse_shape,
)

PLAIN = sorted(set(DATATYPES) - {"BYTES", "BF16"})
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


@given(st.data(), st.sampled_from(PLAIN))
def test_binary_form_round_trip(data: st.DataObject, datatype: str) -> None:
    """Every array of every datatype comes back from its binary form, bit for bit."""
    array = data.draw(arrays.arrays(DATATYPES[datatype], SHAPES))
    again = decode_raw(datatype, array.shape, encode_raw(datatype, array))
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()
    assert again.flags.writeable


@given(st.data(), st.sampled_from(PLAIN))
def test_json_round_trip(data: st.DataObject, datatype: str) -> None:
    """Every array of finite numbers comes back from JSON, flat or nested."""
    dtype = DATATYPES[datatype]
    elements = None if dtype.kind != "f" else st.floats(allow_nan=False, width=dtype.itemsize * 8)  # type: ignore[arg-type]
    array = data.draw(arrays.arrays(dtype, SHAPES, elements=elements))
    assert np.array_equal(decode_json(datatype, array.shape, encode_json(array)), array)
    if array.size:
        assert np.array_equal(decode_json(datatype, array.shape, array.tolist()), array)


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_as_the_public_client_has_them(elements: list[bytes]) -> None:
    """BYTES are the bytes that ``tritonclient`` writes and reads."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    raw = encode_raw("BYTES", array)
    assert as_bytes(decode_raw("BYTES", [len(elements)], raw)) == elements
    assert triton.deserialize_bytes_tensor(raw).tolist() == elements


def test_bf16() -> None:
    """BF16 keeps a float32's upper half, rounds to the nearest, and leaves infinities and NaN alone."""
    exact = np.array([1.0, -2.5, 0.0, np.inf, -np.inf], np.float32)
    assert decode_raw("BF16", [5], encode_raw("BF16", exact)).tolist() == exact.tolist()
    between = np.array([1.00390625, 1.01171875, 3.4028235e38], np.float32)  # two ties, and over the largest
    assert decode_raw("BF16", [3], encode_raw("BF16", between)).tolist() == [1.0, 1.015625, np.inf]
    assert np.isnan(decode_raw("BF16", [1], encode_raw("BF16", np.array([np.nan], np.float32))))[0]


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2], [1.0]),
        ("FP32", [1, 2], [[1.0], [2.0, 3.0]]),
        ("FP32", [2], ["1.0", "2.0"]),
        ("FP32", [1], [None]),
        ("FP32", [1], [True]),
        ("FP32", [1], [10**400]),
        ("FP32", [1], {"a": 1}),
        ("INT8", [1], [128]),
        ("UINT8", [1], [-1]),
        ("INT32", [1], [1.5]),
        ("INT64", [1], [float("nan")]),
        ("INT64", [1], [float("inf")]),
        ("UINT64", [1], [1 << 64]),
        ("BOOL", [1], [2]),
        ("BOOL", [1], ["true"]),
        ("BYTES", [1], [1]),
        ("BYTES", [2], ["one"]),
        ("INT32", [-1, 0], [1]),
        ("FP32", [0, 1 << 62, 1 << 62], []),
    ],
)
def test_json_data_that_does_not_fit(datatype: str, shape: list[int], data: object) -> None:
    """Elements of another type, number or range than declared are refused, never converted silently."""
    with pytest.raises(MalformedInput):
        decode_json(datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [1], b"123"),
        ("FP32", [2], b"1234"),
        ("BOOL", [1], b"\x02"),
        ("BYTES", [1], b"\x01"),
        ("BYTES", [1], b"\x02\x00\x00\x00a"),
        ("BYTES", [1], b"\xff\xff\xff\xff"),
        ("BYTES", [2], b"\x01\x00\x00\x00a"),
        ("UINT8", [0, 1 << 62, 1 << 62], b""),
    ],
)
def test_binary_data_that_do_not_fit(datatype: str, shape: list[int], raw: bytes) -> None:
    """Binary data of another length than declared, or with impossible elements, are refused."""
    with pytest.raises(MalformedInput):
        decode_raw(datatype, shape, raw)


def test_lenient_where_torchserves_clients_are() -> None:
    """One size may be -1, a shape may be a number, an element may stand alone, 1.0 is a whole number."""
    assert parse_shape(-1) == [-1]
    assert decode_json("FP32", [-1, 2], [1, 2, 3, 4]).shape == (2, 2)
    assert decode_json("BYTES", [-1], "text").tolist() == [b"text"]
    assert decode_json("INT64", [2], [1.0, 2.0]).tolist() == [1, 2]


@pytest.mark.parametrize("shape", [None, "1", [1.0], [True], [-2], [-1, -1], [1] * 33, [1 << 63], {}])
def test_impossible_shapes(shape: object) -> None:
    """What is no list of sizes is refused."""
    with pytest.raises(MalformedInput):
        parse_shape(shape)


def test_long_text_beside_numbers_costs_no_memory() -> None:
    """A long string among many numbers is refused before numpy would pad all to its length."""
    with pytest.raises(MalformedInput):
        decode_json("FP32", [200_001], ["x" * 1_000_000, *([1] * 200_000)])


def test_datatypes_of_numpy() -> None:
    """Each numpy type has its datatype, in any byte order; what the protocol does not have is refused."""
    assert [datatype_of(DATATYPES[name]) for name in PLAIN] == PLAIN
    assert datatype_of(np.dtype(">f4")) == "FP32"
    assert encode_raw("FP32", np.array([1], ">f4")) == np.array([1], "<f4").tobytes()
    with pytest.raises(TypeError):
        datatype_of(np.dtype(np.complex64))

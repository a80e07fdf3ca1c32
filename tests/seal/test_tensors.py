"""Sealed safetensors: the same arrays as the library's, and nothing out of bounds."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cloister.errors import BadCiphertext, MalformedInput
from cloister.seal import open_sealed, read_safetensors
from tests.seal.conftest import KEY, TRUSTED

RANDOM = np.random.default_rng(0)


class _Plain(io.BytesIO):
    """Bytes that fill whole buffers, as a SealedFile does."""


def built(header: Any, data: bytes = b"") -> io.RawIOBase:
    """A safetensors file with any header."""
    document = header if isinstance(header, bytes) else json.dumps(header).encode()
    return _Plain(struct.pack("<Q", len(document)) + document + data)  # type: ignore[return-value]


def test_tensors_come_back_from_a_container(seal: Any) -> None:
    """Every tensor that the safetensors library writes is read equal, empty and scalar ones too."""
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "conv.weight": RANDOM.normal(size=(64, 32, 3, 3)).astype(np.float32),
        "bias": RANDOM.normal(size=64).astype(np.float16),
        "steps": np.array(7, np.int64),
        "none": np.empty((0, 4), np.float64),
        "mask": np.array([True, False]),
    }
    sealed = seal(save(tensors, metadata={"format": "np"}), kind="safetensors")
    with open_sealed(sealed.path, key=KEY, trusted=TRUSTED) as file:
        arrays = read_safetensors(file)
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert arrays[name].dtype == tensor.dtype
        np.testing.assert_array_equal(arrays[name], tensor)


def test_bfloat16_comes_as_its_bits() -> None:
    """A type that numpy lacks keeps its bits in an unsigned integer of its size."""
    file = built({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\x80\x3f\x00\x40")
    assert read_safetensors(file)["w"].tolist() == [0x3F80, 0x4000]


def test_damaged_tensor_is_refused(seal: Any) -> None:
    """A flipped bit under a tensor raises instead of returning arrays."""
    sealed = seal(save({"w": RANDOM.normal(size=100_000)}))
    raw = bytearray(sealed.path.read_bytes())
    raw[-100_000] ^= 1
    sealed.path.write_bytes(raw)
    with open_sealed(sealed.path, key=KEY, trusted=TRUSTED) as file, pytest.raises(BadCiphertext):
        read_safetensors(file)


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]}},
        {"w": {"dtype": "F32", "shape": [1] * 40 + [2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"w": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {
            "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        },
        {},
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_headers_out_of_bounds_are_refused(header: Any) -> None:
    """Overlaps, gaps, impossible shapes and sizes, unknown types and fields over 8 bytes of data."""
    with pytest.raises(MalformedInput):
        read_safetensors(built(header, bytes(8)))


@settings(max_examples=100, deadline=None)
@given(
    raw=st.binary(max_size=100) | st.binary(max_size=60).map(lambda rest: b"\x10" + bytes(7) + b"{}" + rest)
)
def test_random_bytes_raise_only_declared_errors(raw: bytes) -> None:
    """Whatever the bytes are, nothing but our error escapes, and nothing large is allocated."""
    with contextlib.suppress(MalformedInput):
        assert read_safetensors(_Plain(raw)) == {}  # type: ignore[arg-type]

"""The CBOR decoder: what it takes, what it refuses, and that nothing makes it hang."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.nitro.cbor import MAX_DEPTH, Tag, decode
from cloister.errors import MalformedInput
from tests.fakes.nitro import encode

VALUES = st.recursive(
    st.none() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(-5, 300) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


def depth(value: Any) -> int:
    """Levels of a value."""
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(VALUES)
def test_round_trip(value: Any) -> None:
    """Every value in its shortest form is read back, up to the permitted depth."""
    if depth(value) > MAX_DEPTH:
        with pytest.raises(MalformedInput):
            decode(encode(value))
    else:
        assert decode(encode(value)) == value


@given(st.binary(max_size=200))
def test_random_bytes(raw: bytes) -> None:
    """Random bytes give a value or MalformedInput, nothing else."""
    try:
        decode(raw)
    except MalformedInput:
        return


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1801",
        "190018",
        "1a0000ffff",
        "1b00000000ffffffff",
        "5801aa",
        "1c",
        "5f41aaff",
        "7f6161ff",
        "f93c00",
        "fb3ff0000000000000",
        "f7",
        "f820",
        "ff",
        "0000",
        "61ff",
        "a2010201" + "03",
        "a1f501",
        "a1410000",
        "bf01",
        "9f01",
        "5bffffffffffffffff00",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "9f" * 20,
        "c0" * 20,
    ],
)
def test_refused(text: str) -> None:
    """Longer forms than needed, floats, endless strings, bad lengths, double keys and depth are refused."""
    with pytest.raises(MalformedInput):
        decode(bytes.fromhex(text))


def test_accepted() -> None:
    """Tags, truth values and containers of indefinite length are read."""
    assert decode(bytes.fromhex("d2f5")) == Tag(18, True)
    assert decode(bytes.fromhex("9f0102ff")) == [1, 2]
    assert decode(bytes.fromhex("bf0102ff")) == {1: 2}
    assert decode(bytes.fromhex("f4")) is False


@pytest.mark.parametrize("raw", [b"\x9f" + b"\x00" * 100_000, b"\x81" * 100_000, b"\xbf" * 100_000])
def test_hostile_sizes(raw: bytes) -> None:
    """Many values and deep nesting end at once."""
    begin = time.perf_counter()
    with pytest.raises(MalformedInput):
        decode(raw)
    assert time.perf_counter() - begin < 0.5

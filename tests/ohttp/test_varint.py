"""Variable-length integers and exact reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.ohttp.varint import MAX_VARINT, Cursor, render_varint


@pytest.mark.parametrize(
    ("value", "text"),
    [(151288809941952652, "c2197c5eff14e88c"), (494878333, "9d7f3e7d"), (15293, "7bbd"), (37, "25")],
)
def test_examples_of_rfc_9000(value: int, text: str) -> None:
    """The examples of RFC 9000, appendix A.1, both ways."""
    assert render_varint(value).hex() == text
    assert Cursor(bytes.fromhex(text)).varint("x") == value


def test_longer_forms_are_read() -> None:
    """A value may be written longer than it needs to be (RFC 9000, appendix A.1: 0x4025 is 37)."""
    assert Cursor(bytes.fromhex("4025")).varint("x") == 37


@given(st.integers(min_value=0, max_value=MAX_VARINT))
def test_round_trip(value: int) -> None:
    """Every value in range comes back."""
    assert Cursor(render_varint(value)).varint("x") == value


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_out_of_range(value: int) -> None:
    """A value that has no form is refused."""
    with pytest.raises(MalformedInput):
        render_varint(value)


@pytest.mark.parametrize("raw", [b"", b"\x40", b"\x80\x00\x00", b"\xc0" + bytes(6)])
def test_truncated(raw: bytes) -> None:
    """An integer cut short is refused."""
    with pytest.raises(MalformedInput, match="truncated"):
        Cursor(raw).varint("x")


def test_a_read_past_the_end() -> None:
    """A length larger than what is left is refused, however large."""
    with pytest.raises(MalformedInput, match="truncated"):
        Cursor(render_varint(MAX_VARINT)).prefixed(None, "x")
    with pytest.raises(MalformedInput, match="at most 4"):
        Cursor(b"\x05hello").prefixed(4, "x")

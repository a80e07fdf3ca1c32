"""Padding: never shorter, never much longer, few different lengths, and still the same message."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.ohttp.bhttp import Request, parse_request, render_request
from cloister.ohttp.padding import MIN_BYTES, pad, padded_bytes


@given(st.integers(0, 1 << 40))
def test_bounds(length: int) -> None:
    """At most 12 % more, and a padded length stays what it is."""
    padded = padded_bytes(length)
    assert length <= padded <= max(MIN_BYTES, length * 1.12)
    assert padded_bytes(padded) == padded


def test_classes() -> None:
    """A hundred thousand lengths become a few hundred."""
    assert len({padded_bytes(n) for n in range(100_000)}) < 250


@given(st.binary(max_size=2000))
def test_message_stays_the_same(content: bytes) -> None:
    """The zeros are no part of the message."""
    request = Request(b"POST", b"https", b"a", b"/x", (), content)
    raw = pad(render_request(request))
    assert parse_request(raw) == request
    assert len(raw) == padded_bytes(len(raw))

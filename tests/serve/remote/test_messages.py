"""Tests of ``cloister.serve.remote.messages``."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve.remote import messages
from cloister.serve.remote.messages import (
    PREFIX,
    Assign,
    Attach,
    Hello,
    ModelKey,
    Offer,
    Opening,
    Ping,
    decode,
    encode,
    message_bytes,
)


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, "worker", "open", bytes(32)),
        Offer("host", 3, frozenset({"ab" * 32})),
        Assign(1, ModelKey("m", "1.0", "ab" * 32), bytes(32), b"{}"),
        Attach(bytes(32), 77, "none"),
        Ping(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_there_and_back(message: messages.Any) -> None:
    """A message is what it was, and the prefix says its length."""
    raw = encode(message)
    assert message_bytes(raw[:4], 1 << 20) == len(raw) - PREFIX.size
    assert decode(raw[4:], type(message)) == message


def test_too_long() -> None:
    """What other protocols begin with is a length over every limit."""
    for beginning in (b"GET ", b"\x16\x03\x01\x02", b"SSH-", b"\xff\xff\xff\xff"):
        with pytest.raises(MalformedInput, match="at most"):
            message_bytes(beginning, messages.MAX_PROOF_BYTES)


def test_only_what_can_come_now() -> None:
    """Before the proof, nothing of what comes after it is understood."""
    for message in (Ping(), Offer("host", 0, frozenset()), Attach(bytes(32), 1, "")):
        with pytest.raises(MalformedInput):
            decode(encode(message)[4:], Opening)  # type: ignore[arg-type]


def test_nonce_and_ticket_have_their_length() -> None:
    """A short nonce would let evidence be asked for in advance."""
    with pytest.raises(MalformedInput):
        decode(encode(Hello(1, "worker", "open", b"short"))[4:], Hello)
    with pytest.raises(MalformedInput):
        decode(encode(Attach(bytes(31), 1, ""))[4:], Attach)


@given(st.binary(max_size=300))
def test_garbage(raw: bytes) -> None:
    """Random bytes raise nothing but MalformedInput."""
    for kind in (Opening, messages.FromFrontend, messages.FromHost):
        with contextlib.suppress(MalformedInput):
            decode(raw, kind)  # type: ignore[arg-type]

"""Event logs: their bytes, and what cannot be one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.eventlog import parse_event_log
from cloister.attest.eventlog.kinds import EVENT_TYPES, event_type_name
from cloister.errors import MalformedInput
from tests.fakes.tpm import event_log

EVENTS = [(0, 8, b"version", b"version"), (4, 4, b"\x00" * 4, b"\x00" * 4)]


@pytest.mark.parametrize("end", [b"", b"\xff" * 100, b"\x00" * 100])
def test_padding_ends_a_log(end: bytes) -> None:
    """A table that is longer than its events ends in 0xFF or in zeros."""
    log = parse_event_log(event_log(EVENTS, ("sha1", "sha256"), end=end))
    assert log.banks == ("sha1", "sha256")
    assert [(event.index, event.type_name) for event in log.events] == [
        (0, "EV_S_CRTM_VERSION"),
        (4, "EV_SEPARATOR"),
    ]
    assert set(log.events[0].digests) == {"sha1", "sha256"}


@given(data=st.data())
def test_truncated_logs_are_malformed(data: st.DataObject) -> None:
    """A log that is cut inside an event is malformed, not shorter."""
    raw = event_log([(1, 8, b"v", b"\x01" * 40)])
    whole = event_log([])
    cut = data.draw(st.integers(len(whole) + 1, len(raw) - 1))
    with pytest.raises(MalformedInput):
        parse_event_log(raw[:cut])


@given(st.binary(max_size=400))
def test_random_bytes_are_malformed_or_a_log(raw: bytes) -> None:
    """Random bytes raise nothing but MalformedInput."""
    try:
        parse_event_log(raw)
    except MalformedInput:
        return


@given(st.integers(0, 200), st.integers(0, 255))
def test_changed_logs_raise_nothing_else(offset: int, value: int) -> None:
    """A log with any changed byte is a log or malformed."""
    raw = bytearray(event_log(EVENTS, ("sha1", "sha384")))
    raw[offset % len(raw)] = value
    try:
        parse_event_log(bytes(raw))
    except MalformedInput:
        return


@pytest.mark.parametrize(
    ("offset", "value"),
    [(56, 0), (56, 200), (60, 0x77), (62, 31)],
    ids=["no-algorithm", "too-many", "undeclared", "wrong-size"],
)
def test_declaration_must_hold(offset: int, value: int) -> None:
    """Algorithms are declared with their number and size, and events use no others."""
    raw = bytearray(event_log(EVENTS))
    raw[offset] = value
    with pytest.raises(MalformedInput):
        parse_event_log(bytes(raw))


def test_limits_hold() -> None:
    """Neither a long log nor many events are read, whatever they declare."""
    with pytest.raises(MalformedInput, match="at most"):
        parse_event_log(bytes(1024 * 1024 + 1))
    with pytest.raises(MalformedInput, match="more than 8192 events"):
        parse_event_log(event_log([(0, 8, b"", b"x")] * 8193))


def test_types_have_names() -> None:
    """Known types have the specification's names, others their number."""
    assert event_type_name(0x80000006) == "EV_EFI_GPT_EVENT"
    assert event_type_name(0x12345) == "0x12345"
    assert len(set(EVENT_TYPES.values())) == len(EVENT_TYPES)

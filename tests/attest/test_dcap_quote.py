"""The parser of DCAP quotes."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.dcap import quote as module
from cloister.attest.dcap.quote import parse_quote
from cloister.errors import MalformedInput


def test_parts_have_their_lengths(quote: bytes) -> None:
    """A quote is cut into parts of the lengths that the offset tables state."""
    parsed = parse_quote(quote)
    assert (parsed.version, len(parsed.body), len(parsed.signed)) == (4, 584, 632)
    assert (len(parsed.signature), len(parsed.attestation_key), len(parsed.qe_report)) == (64, 64, 384)
    assert parsed.pck_chain.count(b"BEGIN CERTIFICATE") == 3


def test_offset_tables_have_no_gap() -> None:
    """Each row of the TD report's table begins where the one before it ends."""
    table = (module.__doc__ or "").split("TD report body")[1].split("SGX report body")[0]
    rows = [(int(a), int(b)) for a, b in re.findall(r"^(\d+) +(\d+) +\w", table, re.MULTILINE)]
    assert rows[0][0] == 0
    assert all(begin + size == after for (begin, size), (after, _) in pairwise(rows))
    assert rows[-1][0] + rows[-1][1] == module.TD15_BYTES


def test_every_truncation_is_refused(quote: bytes) -> None:
    """No proper prefix of a quote is a quote."""
    for length in range(0, len(quote), 7):
        with pytest.raises(MalformedInput):
            parse_quote(quote[:length])


@pytest.mark.parametrize("tail", [b"\x00", b"\n", bytes(16), b"garbage"])
def test_trailing_bytes_are_refused(quote: bytes, tail: bytes) -> None:
    """Nothing may follow a quote, not even zeros."""
    with pytest.raises(MalformedInput):
        parse_quote(quote + tail)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"\x02\x00"),
        (0, b"\x05\x00"),
        (2, b"\x03\x00"),
        (4, b"\x82\x00"),
        (12, b"\x00"),
        (764, b"\x05\x00"),
    ],
)
def test_unknown_values_are_refused(quote: bytes, offset: int, value: bytes) -> None:
    """Unknown versions, key types, TEE types, vendors and certification types are malformed."""
    changed = quote[:offset] + value + quote[offset + len(value) :]
    with pytest.raises(MalformedInput):
        parse_quote(changed)


def test_too_long_input_is_refused() -> None:
    """A quote has an upper bound, checked before anything else."""
    with pytest.raises(MalformedInput, match="at most"):
        parse_quote(bytes(module.MAX_QUOTE_BYTES + 1))


@given(st.binary(max_size=2000))
def test_random_bytes_raise_only_malformed(raw: bytes) -> None:
    """Random bytes raise nothing but MalformedInput."""
    with pytest.raises(MalformedInput):
        parse_quote(raw)

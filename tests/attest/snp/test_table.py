"""Evidence with the host's certificate table."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import verify_evidence
from cloister.attest.snp.table import KINDS, parse_table, render_table, split_evidence
from cloister.errors import CloisterError, MalformedInput, UntrustedRoot
from tests.attest.snp.conftest import NOW, Platform, der, make_platform


def table_of(platform: Platform) -> bytes:
    """The table that its host hands out."""
    own = platform.endorsements()
    return render_table({"vcek": own.vcek or b"", "ask": own.ask or b"", "ark": own.ark or b""})


def test_evidence_brings_its_endorsements(genoa: Platform) -> None:
    """A report with the table after it needs no other endorsements."""
    raw = genoa.report() + table_of(genoa)
    claims = verify_evidence("sev-snp", raw, None, NOW, roots=[genoa.ark.certificate])
    assert claims.simulated
    with pytest.raises(UntrustedRoot):
        verify_evidence("sev-snp", raw, None, NOW)


def test_given_endorsements_come_first(genoa: Platform) -> None:
    """A certificate that the caller gives is not replaced by the host's."""
    other = make_platform()
    raw = genoa.report() + table_of(other)
    assert genoa.verify(raw).simulated
    with pytest.raises(CloisterError):
        verify_evidence("sev-snp", raw, None, NOW, roots=[genoa.ark.certificate])


def test_both_byte_orders_and_padding(genoa: Platform) -> None:
    """GUIDs are understood in both byte orders; zeros up to the end of a page are padding."""
    swapped = table_of(genoa).replace(KINDS["vcek"].bytes, KINDS["vcek"].bytes_le)
    assert parse_table(swapped)["vcek"] == der(genoa.certificate)
    assert parse_table(swapped.ljust(8192, b"\x00"))["vcek"] == der(genoa.certificate)


def test_unknown_kinds_are_left_alone() -> None:
    """Hosts add entries of their own."""
    entry = struct.pack("<16sII", b"\x07" * 16, 72, 4) + struct.pack("<16sII", KINDS["crl"].bytes, 76, 3)
    assert parse_table(entry + bytes(24) + b"extrcrl") == {"crl": b"crl"}


@pytest.mark.parametrize(
    "table",
    [
        b"\x00",
        bytes(24),
        bytes(4096),
        struct.pack("<16sII", KINDS["vcek"].bytes, 48, 1) + bytes(24),
        struct.pack("<16sII", KINDS["vcek"].bytes, 0, 1) + bytes(24) + b"x",
        struct.pack("<16sII", KINDS["vcek"].bytes, 48, 0) + bytes(24) + b"x",
        struct.pack("<16sII", KINDS["vcek"].bytes, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(24),
        struct.pack("<16sII", KINDS["vcek"].bytes, 48, 1) + bytes(24) + b"xy",
        struct.pack("<16sII", KINDS["vcek"].bytes, 49, 1) + bytes(24) + b"xy",
        struct.pack("<16sII", KINDS["vcek"].bytes, 48, 1),
        struct.pack("<16sII", KINDS["vcek"].bytes, 72, 1) * 2 + bytes(24) + b"x",
        struct.pack("<16sII", b"\x07" * 16, 1000, 1) * 17 + bytes(24),
        bytes(200_000),
    ],
)
def test_broken_tables(table: bytes) -> None:
    """Whatever does not account for every byte is refused."""
    with pytest.raises(MalformedInput):
        parse_table(table)


@given(tail=st.binary(min_size=1, max_size=200))
def test_random_tail(tail: bytes) -> None:
    """Random bytes after a report raise declared errors only."""
    with pytest.raises(MalformedInput):
        split_evidence(bytes(1184) + tail)

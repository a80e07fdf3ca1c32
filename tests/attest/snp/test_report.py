"""The bytes of a report."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.attest.snp import report as report_module
from cloister.attest.snp.report import P384_ORDER, REPORT_BYTES, SIGNED_BYTES, parse_report
from cloister.errors import BadSignature, MalformedInput, VerificationError
from tests.attest.snp.conftest import MEASUREMENT, REPORT_DATA, Platform


def changed(raw: bytes, offset: int, value: bytes) -> bytes:
    """``raw`` with other bytes at ``offset``."""
    return raw[:offset] + value + raw[offset + len(value) :]


def test_offset_table_is_complete() -> None:
    """The documented table covers each byte of a report once, in order."""
    rows = re.findall(r"^0x([0-9A-F]{3})  (\d+) +\S", report_module.__doc__ or "", re.MULTILINE)
    end = 0
    for offset, size in rows:
        assert int(offset, 16) == end
        end += int(size)
    assert end == REPORT_BYTES


def test_fields_are_cut_where_they_are(genoa: Platform) -> None:
    """Every field that a guest gives comes back."""
    raw = genoa.report(guest_svn=7, vmpl=2, host_data=b"h" * 32, family_id=b"f" * 16, id_key_digest=b"i" * 48)
    report = parse_report(raw)
    assert (report.version, report.guest_svn, report.vmpl) == (5, 7, 2)
    assert (report.report_data, report.measurement) == (REPORT_DATA, MEASUREMENT)
    assert (report.host_data, report.family_id, report.id_key_digest) == (b"h" * 32, b"f" * 16, b"i" * 48)
    assert report.cpuid == (0x19, 0x11, 1)
    assert (report.launch_mit_vector, report.signing_key) == (0x0B, "vcek")
    assert str(report.current_version) == "1.55.49"


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0x000, struct.pack("<I", 1)),
        (0x000, struct.pack("<I", 6)),
        (0x00A, b"\x01"),  # bit 17 of the policy
        (0x030, struct.pack("<I", 4)),
        (0x034, struct.pack("<I", 0)),
        (0x034, struct.pack("<I", 2)),
        (0x048, struct.pack("<I", 2 << 2)),
        (0x048, struct.pack("<I", 1 << 5)),
        (0x04C, b"\x01"),
        (0x18B, b"\x01"),
        (0x19F, b"\x01"),
        (0x1EB, b"\x01"),
        (0x1EF, b"\x01"),
        (0x208, b"\x01"),
        (0x29F, b"\x01"),
        (0x2A0 + 48, b"\x01"),
        (0x2A0 + 71, b"\x01"),
        (0x2E8 + 48, b"\x01"),
        (0x330, b"\x01"),
        (0x49F, b"\x01"),
    ],
)
def test_wrong_form_is_refused(genoa: Platform, offset: int, value: bytes) -> None:
    """Unknown versions, algorithms and keys are refused, and each must-be-zero field that is not."""
    with pytest.raises(MalformedInput):
        parse_report(changed(genoa.report(), offset, value))


@pytest.mark.parametrize(("version", "offset"), [(2, 0x188), (2, 0x1F8), (3, 0x1F8), (4, 0x200), (4, 0x207)])
def test_fields_of_later_versions_are_reserved(genoa: Platform, version: int, offset: int) -> None:
    """A field that a version does not have must be zero in it."""
    raw = genoa.report(version=version)
    parse_report(raw)
    with pytest.raises(MalformedInput):
        parse_report(changed(raw, offset, b"\x01"))


@pytest.mark.parametrize("scalar", [0, P384_ORDER, P384_ORDER + 1, 2**384 - 1])
@pytest.mark.parametrize("offset", [0x2A0, 0x2E8])
def test_signature_out_of_range(genoa: Platform, scalar: int, offset: int) -> None:
    """r and s are from 1 to the order of the curve."""
    with pytest.raises(BadSignature):
        parse_report(changed(genoa.report(), offset, scalar.to_bytes(48, "little")))


@pytest.mark.parametrize("key_info", [7 << 2, 2])
def test_unsigned_report_is_refused(genoa: Platform, key_info: int) -> None:
    """A report that says of itself that it is not signed is not believed."""
    with pytest.raises(BadSignature, match="not signed"):
        parse_report(changed(genoa.report(), 0x48, struct.pack("<I", key_info)))


def test_report_for_the_host_says_so(genoa: Platform) -> None:
    """A report that the host asked for has a VMPL that no policy admits."""
    assert parse_report(genoa.report(vmpl=0xFFFFFFFF)).vmpl == 0xFFFFFFFF


@given(st.binary(max_size=64) | st.binary(min_size=REPORT_BYTES, max_size=REPORT_BYTES))
@example(b"")
@example(b"\x02\x00\x00\x00".ljust(REPORT_BYTES, b"\x00"))
def test_random_bytes(raw: bytes) -> None:
    """Random bytes raise declared errors only."""
    with pytest.raises((MalformedInput, VerificationError)):
        parse_report(raw)


def test_every_length_but_one_is_refused(genoa: Platform) -> None:
    """A report has 1,184 bytes."""
    raw = genoa.report()
    for wrong in (raw[:-1], raw + b"\x00", raw[:SIGNED_BYTES], b""):
        with pytest.raises(MalformedInput):
            parse_report(wrong)

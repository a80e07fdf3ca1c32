"""The paravisor's report: its bytes, and what binds its runtime data."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.azure import check_runtime_binding, parse_hcl_report
from cloister.attest.azure.runtime import parse_runtime_data
from cloister.errors import BindingMismatch, MalformedInput
from tests.fakes.azure import bound, hcl_report, runtime_data, tdreport
from tests.fakes.tpm import FakeTpm, rsa_key

DATA = runtime_data(FakeTpm())
TDX = hcl_report(tdreport(bound(DATA), bytes(range(200)) * 3), 4, DATA)


def snp(data: bytes = DATA, *, hash_type: int = 1, algorithm: str = "sha256") -> bytes:
    """A report around an SEV-SNP report that binds ``data``, as far as the paravisor's report shows."""
    return hcl_report(bytes(0x50) + bound(data, algorithm), 2, data, hash_type=hash_type)


@pytest.mark.parametrize(
    "raw", [TDX, snp(), snp(hash_type=2, algorithm="sha384"), snp(hash_type=3, algorithm="sha512")]
)
def test_bound_runtime_data_is_returned(raw: bytes) -> None:
    """Runtime data that the hardware report binds is read, whatever the hash."""
    data = check_runtime_binding(parse_hcl_report(raw))
    assert data.user_data == bytes(range(64))
    assert data.vm_configuration["vmUniqueId"] == "vm-1"
    assert data.attestation_key.key_size == 2048


def test_other_runtime_data_is_refused() -> None:
    """Runtime data, or a byte of report_data after the hash, that was changed is refused."""
    raw = snp()
    for changed in (raw.replace(b'"vm-1"', b'"vm-2"'), raw[:0x9F] + b"\x01" + raw[0xA0:], snp(hash_type=2)):
        with pytest.raises(BindingMismatch):
            check_runtime_binding(parse_hcl_report(changed))


@pytest.mark.parametrize("offset", [0x20 + 256, 0x20 + 512, 0x20 + 1023, 0x20 + 128])
def test_tdreport_must_agree_with_itself(offset: int) -> None:
    """Parts of a TDREPORT have the hashes that it states."""
    changed = bytearray(TDX)
    changed[offset] ^= 1
    with pytest.raises(BindingMismatch):
        check_runtime_binding(parse_hcl_report(bytes(changed)))


def patched(offset: int, value: int) -> bytes:
    """A report with another number at ``offset``."""
    return TDX[:offset] + struct.pack("<I", value) + TDX[offset + 4 :]


@pytest.mark.parametrize(
    "raw",
    [
        *(patched(offset, 9) for offset in (0, 4, 8, 12, 16, 20, 0x4C0, 0x4C4, 0x4C8, 0x4CC, 0x4D0)),
        patched(0x4D0, 2**32 - 1),
        patched(0x20 + 1024, 1),
        TDX[:-1] + b"\x01",
        TDX[:0x4D4],
        TDX[:0x4D3],
        b"",
        bytes(20000),
    ],
)
def test_other_reports_are_malformed(raw: bytes) -> None:
    """Every field of the header has one of its known values, and every length fits."""
    with pytest.raises(MalformedInput):
        parse_hcl_report(raw)


def keys(**changes: object) -> bytes:
    """Runtime data with a changed attestation key."""
    key = json.loads(DATA)["keys"][0]
    return runtime_data(FakeTpm(), keys=[{**key, **changes}])


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{}",
        keys(kid="other"),
        keys(kty="EC"),
        keys(n=5),
        keys(n="!"),
        keys(n="AQAB"),
        keys(e="AA"),
        keys(e="AQ" * 400),
        runtime_data(FakeTpm(), keys=json.loads(DATA)["keys"] * 2),
        runtime_data(FakeTpm(rsa_key(1024))),
        runtime_data(FakeTpm(), **{"user-data": "00"}),
        runtime_data(FakeTpm(), **{"user-data": 7}),
        runtime_data(FakeTpm(), **{"vm-configuration": []}),
        DATA.replace(b"{", b'{"user-data": "", ', 1),
    ],
)
def test_other_runtime_data_is_malformed(data: bytes) -> None:
    """Runtime data has exactly one sound attestation key, and members of their types."""
    with pytest.raises(MalformedInput):
        parse_runtime_data(data)


@given(st.integers(0, len(TDX) - 1), st.integers(0, 255))
def test_changed_reports_raise_nothing_else(offset: int, value: int) -> None:
    """A report with any changed byte is read, malformed or refused."""
    raw = bytearray(TDX)
    raw[offset] = value
    for part in (bytes(raw), bytes(raw[:offset])):
        with contextlib.suppress(MalformedInput, BindingMismatch):
            check_runtime_binding(parse_hcl_report(part))

"""A confidential machine on a fake Azure: paravisor's report, virtual TPM, simulated hardware under it."""

from __future__ import annotations

import hashlib
import json
import struct
from base64 import urlsafe_b64encode
from typing import Any

from tests.fakes.tpm import FakeTpm, pcr_values

PCRS = {"sha256": pcr_values("sha256", range(24))}
MR_TD = bytes(range(48))
MEASUREMENT = bytes(range(48, 96))


def runtime_data(tpm: FakeTpm, **changes: Any) -> bytes:
    """The paravisor's JSON; ``changes`` replace members, None leaves one out."""
    numbers = tpm.key.public_key().public_numbers()
    n, e = (
        urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).decode().rstrip("=")
        for number in (numbers.n, numbers.e)
    )
    key = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": e, "n": n}
    document = {
        "keys": [key],
        "vm-configuration": {"secure-boot": True, "console-enabled": False, "vmUniqueId": "vm-1"},
        "user-data": bytes(range(64)).hex().upper(),
        **changes,
    }
    return json.dumps({name: value for name, value in document.items() if value is not None}).encode()


def bound(data: bytes, algorithm: str = "sha256") -> bytes:
    """What the hardware report binds for this runtime data."""
    return hashlib.new(algorithm, data).digest().ljust(64, b"\x00")


def hcl_report(hardware: bytes, kind: int, data: bytes, *, hash_type: int = 1) -> bytes:
    """The paravisor's report around a hardware report."""
    request = struct.pack("<5I", 20 + len(data), 1, kind, hash_type, len(data))
    header = struct.pack("<4sIIII12s", b"HCLA", 2, 0x4C0 + 20 + len(data), 2, 0, bytes(12))
    return (header + hardware.ljust(1184, b"\x00") + request + data).ljust(2600, b"\x00")


def tdreport(report_data: bytes, quote_body: bytes) -> bytes:
    """A TDREPORT of the domain that the body of a TD quote is of."""
    td_info = quote_body[120:520].ljust(512, b"\x00")
    tcb_info = bytes(239)
    hashes = hashlib.sha384(tcb_info).digest() + hashlib.sha384(td_info).digest()
    mac = b"\x81" + bytes(31) + hashes + report_data + bytes(64)
    return mac + tcb_info + bytes(17) + td_info


def evidence(tpm: FakeTpm, report: bytes, **more: Any) -> dict[str, Any]:
    """Evidence in the form of Trustee's version 1."""
    quote = tpm.evidence(PCRS)["tpm_quote"]
    members = {"version": 1, "tpm_quote": quote, "hcl_report": urlsafe_b64encode(report).decode(), **more}
    return {name: value for name, value in members.items() if value is not None}

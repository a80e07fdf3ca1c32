"""The report of Azure's paravisor (HCL): a hardware report, and the runtime data that it binds.

The guest reads it from NV index 0x01400001 of its virtual TPM. Integers are little-endian.

====== ====== =================== ============================================================
offset size   field               meaning
====== ====== =================== ============================================================
0x000  4      signature           ``HCLA``
0x004  4      version             1 or 2
0x008  4      report_size         bytes of the report without its padding
0x00C  4      request_type        2: attestation
0x010  4      status              0
0x014  12     (reserved)          zero
0x020  1184   hardware_report     SEV-SNP report, or TDREPORT (1024) and zeros
0x4C0  4      data_size           20 + variable_data_size
0x4C4  4      data_version        1
0x4C8  4      report_type         2 SEV-SNP, 4 TDX
0x4CC  4      hash_type           1 SHA-256, 2 SHA-384, 3 SHA-512
0x4D0  4      variable_data_size
0x4D4  …      variable_data       runtime data, JSON
====== ====== =================== ============================================================

The rest is zero. The hardware report's ``report_data`` is the hash of ``variable_data``, followed by zeros.

TDREPORT, relative: REPORTMACSTRUCT 0 (type 0, TEE_TCB_INFO_HASH 32, TEE_INFO_HASH 80, REPORTDATA 128,
MAC 224), TEE_TCB_INFO 256 (239 bytes), TDINFO 512 (ATTRIBUTES 0, XFAM 8, MRTD 16, ..., RTMR3 352; 512 bytes).

Source: Microsoft, "Azure confidential VMs: guest attestation" (attestation report and runtime data); Intel
TDX Module ABI, TDREPORT_STRUCT.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from cloister.attest.azure.runtime import RuntimeData, parse_runtime_data
from cloister.errors import BindingMismatch, MalformedInput

MAX_HCL_BYTES = 16 * 1024
HARDWARE_AT, HARDWARE_BYTES = 0x20, 1184
HEADER_AT, DATA_AT = 0x4C0, 0x4D4
TYPE_SNP, TYPE_TDX = 2, 4
TDREPORT_BYTES = 1024
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
_HEADER = struct.Struct("<4sIIII12s")
_REQUEST = struct.Struct("<5I")
_ATTESTATION = 2
_REPORT_DATA_AT = {TYPE_SNP: 0x50, TYPE_TDX: 128}
_TEE_TCB_INFO, _TD_INFO = slice(256, 495), slice(512, 1024)


@dataclass(frozen=True, slots=True)
class HclReport:
    """The parts of a report; nothing in it has been verified."""

    version: int
    report_type: int
    hardware_report: bytes
    """SEV-SNP: 1,184 bytes; TDX: the TDREPORT's 1,024."""
    hash_name: str
    variable_data: bytes

    @property
    def report_data(self) -> bytes:
        """What the hardware report binds, 64 bytes."""
        begin = _REPORT_DATA_AT[self.report_type]
        return self.hardware_report[begin : begin + 64]


def parse_hcl_report(raw: bytes) -> HclReport:
    """Cut a report into its parts.

    Raises:
        MalformedInput: a field has a value that is not known, or a length does not fit.
    """
    if not DATA_AT <= len(raw) <= MAX_HCL_BYTES:
        raise MalformedInput(f"HCL report has {len(raw)} bytes, expected {DATA_AT} to {MAX_HCL_BYTES}")
    signature, version, report_size, request_type, status, reserved = _HEADER.unpack_from(raw, 0)
    data_size, data_version, report_type, hash_type, size = _REQUEST.unpack_from(raw, HEADER_AT)
    if signature != b"HCLA" or version not in (1, 2) or data_version != 1:
        raise MalformedInput(f"HCL report: {signature!r}, version {version}, data version {data_version}")
    if request_type != _ATTESTATION or status or any(reserved):
        raise MalformedInput(f"HCL report: request type {request_type}, status {status}")
    if report_type not in _REPORT_DATA_AT or hash_type not in _HASHES:
        raise MalformedInput(f"HCL report: report type {report_type}, hash type {hash_type}")
    if size > len(raw) - DATA_AT or data_size != _REQUEST.size + size or report_size != HEADER_AT + data_size:
        raise MalformedInput(f"HCL report of {len(raw)} bytes declares {size} of runtime data")
    if any(raw[DATA_AT + size :]):
        raise MalformedInput("HCL report: its padding is not zero")
    hardware = raw[HARDWARE_AT : HARDWARE_AT + HARDWARE_BYTES]
    if report_type == TYPE_TDX:
        if any(hardware[TDREPORT_BYTES:]):
            raise MalformedInput("HCL report: bytes after the TDREPORT are not zero")
        hardware = hardware[:TDREPORT_BYTES]
    return HclReport(version, report_type, hardware, _HASHES[hash_type], raw[DATA_AT : DATA_AT + size])


def check_runtime_binding(report: HclReport) -> RuntimeData:
    """Establish that the hardware report speaks of this runtime data, and return the data.

    It does not say that the hardware report is genuine.

    Raises:
        BindingMismatch: ``report_data`` is not the hash of the runtime data and zeros, or the TDREPORT's
            own hashes do not hold.
        MalformedInput: the runtime data does not have its form.
    """
    found = hashlib.new(report.hash_name, report.variable_data).digest().ljust(64, b"\x00")
    if not hmac.compare_digest(found, report.report_data):
        raise BindingMismatch(
            f"HCL report's runtime data hashes to {found.hex()}, its hardware report binds"
            f" {report.report_data.hex()}"
        )
    if report.report_type == TYPE_TDX:
        _check_tdreport(report.hardware_report)
    return parse_runtime_data(report.variable_data)


def td_info(report: HclReport) -> bytes:
    """TDINFO of a TDREPORT: attributes, XFAM, MRTD and so on, in the order of a quote's body."""
    return report.hardware_report[_TD_INFO]


def _check_tdreport(tdreport: bytes) -> None:
    """The MAC can be checked by the processor only; the hashes under it by anybody."""
    if tdreport[0] != 0x81:
        raise MalformedInput(f"TDREPORT of type {tdreport[0]:#x}, expected 0x81")
    for begin, part, name in ((32, _TEE_TCB_INFO, "TEE_TCB_INFO"), (80, _TD_INFO, "TDINFO")):
        if hashlib.sha384(tdreport[part]).digest() != tdreport[begin : begin + 48]:
            raise BindingMismatch(f"TDREPORT: {name} does not have the hash that is stated")

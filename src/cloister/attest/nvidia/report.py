"""NVIDIA's attestation report: an SPDM 1.1 GET_MEASUREMENTS request and its response.

========= ====== ===========================================================================
offset    size   field
========= ====== ===========================================================================
0         1      request: SPDM version 0x11
1         1      code 0xE0, GET_MEASUREMENTS
2         1      parameter 1: 0x01, a signature is asked for
3         1      parameter 2: 0xFF, all measurements
4         32     nonce of the verifier
36        1      certificate slot
37        1      response: SPDM version 0x11
38        1      code 0x60, MEASUREMENTS
39        2      parameters
41        1      number of blocks
42        3      length of the measurement record, little-endian, as are all lengths
45        n      measurement record: blocks
45+n      32     nonce of the device
77+n      2      length of the opaque data
79+n      m      opaque data: fields of type (2), length (2), value
79+n+m    96     signature: r and s, 48 big-endian bytes each
175+n+m   0 or 1 zero byte, which some tools append
========= ====== ===========================================================================

A block is index (1), specification 0x01 (DMTF), size (2), and in it type (1), size (2), value.
Signed is everything before the signature.

Source: DMTF DSP0274 1.1.0, sections 10.11.1 and 10.11.2; NVIDIA attestation SDK, opaque data types.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cloister.attest.p384 import SIGNATURE_BYTES
from cloister.errors import MalformedInput

MAX_REPORT_BYTES = 64 * 1024
NONCE_BYTES = 32
REQUEST_BYTES = 37
MAX_VALUE_BYTES = 64
FWID_BYTES = 48
_REQUEST_BEGIN = bytes.fromhex("11e001ff")
_RESPONSE_BEGIN = bytes.fromhex("1160")
_HEAD_BYTES = 45
_DMTF = 1

OPAQUE_TYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "cert_issuer_name",
        2: "cert_authority_key_identifier",
        3: "driver_version",
        4: "gpu_info",
        5: "sku",
        6: "vbios_version",
        7: "manufacturer_id",
        8: "tamper_detection",
        9: "smc",
        10: "vpr",
        11: "nvdec0_status",
        12: "measurement_count",
        13: "cpr_info",
        14: "board_id",
        15: "chip_sku",
        16: "chip_sku_mod",
        17: "project",
        18: "project_sku",
        19: "project_sku_mod",
        20: "fwid",
        21: "protected_pcie_status",
        22: "switch_pdi",
        23: "floorswept_ports",
        24: "position_id",
        25: "lock_switch_status",
        26: "gpu_pdis",
        32: "gpu_link_conn",
        33: "sys_enable_status",
        34: "opaque_data_version",
        35: "chip_info",
        36: "feature_flag",
    }
)


@dataclass(frozen=True, slots=True)
class Report:
    """A report whose signature has not been checked yet."""

    signed: bytes
    signature: bytes
    nonce: bytes
    """Of the verifier: what the report is bound to."""
    measurements: Mapping[int, bytes]
    """Values by SPDM index, from 1."""
    opaque: Mapping[str, bytes]
    """Values by name; a type that is not known here is called ``type_<number>``."""

    @property
    def is_switch(self) -> bool:
        """Whether the report is of an NVSwitch; those have no driver version."""
        return "driver_version" not in self.opaque

    @property
    def driver_version(self) -> str:
        """For example ``550.90.07``; empty for a switch."""
        return _text(self.opaque.get("driver_version", b""), "driver version")

    @property
    def vbios_version(self) -> str:
        """For example ``96.00.9F.00.01``."""
        raw = self.opaque.get("vbios_version", b"")
        if self.is_switch:
            return _text(raw, "BIOS version")
        if len(raw) != 8:
            raise MalformedInput(f"NVIDIA report: VBIOS version has {len(raw)} bytes, expected 8")
        # The first word is the build, the second the version, both little-endian.
        digits = raw[3::-1].hex().upper(), raw[4:5].hex().upper()
        pairs = [digits[0][at : at + 2] for at in range(0, 8, 2)]
        return ".".join([*pairs, digits[1]])

    def opaque_text(self, name: str) -> str:
        """A field as text if all of it is printable, less the zero bytes after it; else as hexadecimal."""
        raw = self.opaque.get(name, b"")
        text = raw.rstrip(b"\x00")
        printable = text.isascii() and text.decode("latin-1").isprintable()
        return text.decode("ascii") if text and printable and name in _TEXTS else raw.hex()


_TEXTS = {"chip_sku", "chip_sku_mod", "project", "project_sku", "project_sku_mod"}


def parse_report(raw: bytes) -> Report:
    """A report, every length checked.

    Raises:
        MalformedInput: another message, version or length, or anything after it but one zero byte.
    """
    if not _HEAD_BYTES <= len(raw) <= MAX_REPORT_BYTES:
        raise MalformedInput(
            f"NVIDIA report has {len(raw)} bytes, expected {_HEAD_BYTES} to {MAX_REPORT_BYTES}"
        )
    if raw[:4] != _REQUEST_BEGIN:
        raise MalformedInput("NVIDIA report does not begin with SPDM 1.1 GET_MEASUREMENTS, signed, all")
    if raw[REQUEST_BYTES : REQUEST_BYTES + 2] != _RESPONSE_BEGIN:
        raise MalformedInput("NVIDIA report: the response is not SPDM 1.1 MEASUREMENTS")
    count = raw[41]
    record_end = _HEAD_BYTES + int.from_bytes(raw[42:45], "little")
    opaque_begin = record_end + NONCE_BYTES + 2
    opaque_end = opaque_begin + int.from_bytes(raw[opaque_begin - 2 : opaque_begin], "little")
    end = opaque_end + SIGNATURE_BYTES
    if raw[end:] not in (b"", b"\x00") or len(raw) < end:
        raise MalformedInput(f"NVIDIA report has {len(raw)} bytes, its lengths say {end}")
    return Report(
        signed=raw[:opaque_end],
        signature=raw[opaque_end:end],
        nonce=raw[4:36],
        measurements=_measurements(raw[_HEAD_BYTES:record_end], count),
        opaque=_opaque(raw[opaque_begin:opaque_end]),
    )


def _measurements(record: bytes, count: int) -> Mapping[int, bytes]:
    values: dict[int, bytes] = {}
    at = 0
    try:
        while at < len(record):
            index, specification, size, _, value_size = struct.unpack_from("<BBHBH", record, at)
            value = record[at + 7 : at + 4 + size]
            at += 4 + size
            if specification != _DMTF or value_size != size - 3 or len(value) != value_size:
                raise MalformedInput(f"NVIDIA report: measurement block {index} is not in DMTF form")
            if index in values or index == 0 or value_size > MAX_VALUE_BYTES:
                raise MalformedInput(f"NVIDIA report: measurement index {index} is zero, double or too long")
            values[index] = value
    except struct.error as error:
        raise MalformedInput("NVIDIA report: measurement record ends inside a block") from error
    if len(values) != count:
        raise MalformedInput(f"NVIDIA report has {len(values)} measurement blocks, says {count}")
    return MappingProxyType(values)


def _opaque(data: bytes) -> Mapping[str, bytes]:
    fields: dict[str, bytes] = {}
    at = 0
    try:
        while at < len(data):
            kind, size = struct.unpack_from("<HH", data, at)
            value = data[at + 4 : at + 4 + size]
            at += 4 + size
            name = OPAQUE_TYPES.get(kind, f"type_{kind}")
            if len(value) != size or name in fields:
                raise MalformedInput(f"NVIDIA report: opaque field {name} is cut off, or occurs twice")
            fields[name] = value
    except struct.error as error:
        raise MalformedInput("NVIDIA report: opaque data ends inside a field") from error
    if len(fields.get("fwid", bytes(FWID_BYTES))) != FWID_BYTES:
        raise MalformedInput(f"NVIDIA report: FWID has not {FWID_BYTES} bytes")
    return MappingProxyType(fields)


def _text(raw: bytes, what: str) -> str:
    text = raw.rstrip(b"\x00")
    if not text.isascii() or not text.decode("latin-1").isprintable():
        raise MalformedInput(f"NVIDIA report: {what} is not text")
    return text.decode("ascii")

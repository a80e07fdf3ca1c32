"""SEV-SNP evidence as Confidential Containers' attester sends it: the report as JSON, turned back into bytes.

The JSON is what the Rust crate ``sev`` derives for its ``AttestationReport``: one member per field, byte
arrays as lists of numbers, TCB versions as objects. The signature is over the bytes, so a field that is
converted wrongly is a signature that fails; nothing here has to be believed.

Older versions of the crate name some members otherwise; both names are read::

    key_info                        _author_key_en
    current {major, minor, build}   current_major, current_minor, current_build
    committed {...}                 committed_major, ...

Source: confidential-containers/guest-components, ``attester/src/snp``; virtee/sev, ``AttestationReport``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.attest.snp.report import REPORT_BYTES
from cloister.attest.snp.tcb import decode_tcb, encode_tcb, product_of_cpuid
from cloister.errors import MalformedInput

_CPUID = ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step")
_NUMBERS = (
    (0x000, 4, "version"),
    (0x004, 4, "guest_svn"),
    (0x008, 8, "policy"),
    (0x030, 4, "vmpl"),
    (0x034, 4, "sig_algo"),
    (0x040, 8, "plat_info"),
)
_OCTETS = (
    (0x010, 16, "family_id"),
    (0x020, 16, "image_id"),
    (0x050, 64, "report_data"),
    (0x090, 48, "measurement"),
    (0x0C0, 32, "host_data"),
    (0x0E0, 48, "id_key_digest"),
    (0x110, 48, "author_key_digest"),
    (0x140, 32, "report_id"),
    (0x160, 32, "report_id_ma"),
    (0x1A0, 64, "chip_id"),
)
_TCBS = ((0x038, "current_tcb"), (0x180, "reported_tcb"), (0x1E0, "committed_tcb"), (0x1F0, "launch_tcb"))
_SINCE_3 = tuple((0x188 + at, 1, name) for at, name in enumerate(_CPUID))
_SINCE_5 = ((0x1F8, 8, "launch_mit_vector"), (0x200, 8, "current_mit_vector"))
_SIGNATURE = ((0x2A0, 72, "r"), (0x2E8, 72, "s"))


def parse_trustee_evidence(evidence: Mapping[str, Any]) -> tuple[bytes, SnpEndorsements]:
    """The report's 1,184 bytes, and the certificates that came with it.

    Args:
        evidence: ``{"attestation_report": {...}, "cert_chain": [...] or null}``, parsed.
    Raises:
        MalformedInput: a field is missing, of the wrong type or out of range.
    """
    if not isinstance(evidence, Mapping):
        raise MalformedInput("SEV-SNP evidence is not a JSON object")
    report = render_report(_member(evidence, "attestation_report"))
    return report, SnpEndorsements.from_mapping({"cert_chain": evidence.get("cert_chain")})


def render_report(fields: Mapping[str, Any]) -> bytes:
    """The bytes of a report from its JSON form; see ``parse_trustee_evidence``."""
    raw = bytearray(REPORT_BYTES)
    version = _number(fields, "version", 4)
    numbers = list(_NUMBERS)
    if version >= 3:
        numbers += _SINCE_3
    if version >= 5:
        numbers += _SINCE_5
    numbers.append((0x048, 4, "key_info" if "key_info" in fields else "_author_key_en"))
    for offset, size, name in numbers:
        raw[offset : offset + size] = _number(fields, name, size).to_bytes(size, "little")
    for offset, size, name in _OCTETS:
        raw[offset : offset + size] = _octets(fields, name, size)
    product = "Turin" if _is_turin(raw, version) else "Milan"
    for offset, name in _TCBS:
        raw[offset : offset + 8] = _tcb(_member(fields, name), product)
    for offset, name in ((0x1E8, "current"), (0x1EC, "committed")):
        raw[offset : offset + 3] = _firmware(fields, name)
    signature = _member(fields, "signature")
    for offset, size, name in _SIGNATURE:
        raw[offset : offset + size] = _octets(signature, name, size)
    return bytes(raw)


def _is_turin(raw: bytearray, version: int) -> bool:
    """Version 2 names no processor, but Turin's chip_id has eight bytes."""
    if version >= 3:
        return product_of_cpuid(raw[0x188], raw[0x189]) == "Turin"
    return any(raw[0x1A0:0x1A8]) and not any(raw[0x1A8:0x1E0])


def _tcb(value: Mapping[str, Any], product: str) -> bytes:
    known = ("bootloader", "tee", "snp", "microcode") + (("fmc",) if product == "Turin" else ())
    return encode_tcb({name: _number(value, name, 1) for name in known}, product)


def _firmware(fields: Mapping[str, Any], name: str) -> bytes:
    if name in fields:
        value = _member(fields, name)
        return bytes(_number(value, part, 1) for part in ("build", "minor", "major"))
    return bytes(_number(fields, f"{name}_{part}", 1) for part in ("build", "minor", "major"))


def _member(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    member = value.get(name)
    if not isinstance(member, Mapping):
        raise MalformedInput(f"SEV-SNP evidence: {name} is missing or not an object")
    return member


def _number(value: Mapping[str, Any], name: str, size: int) -> int:
    number = value.get(name)
    if type(number) is not int or not 0 <= number < 1 << 8 * size:
        raise MalformedInput(f"SEV-SNP evidence: {name} is missing or not a number of {size} bytes")
    return number


def _octets(value: Mapping[str, Any], name: str, size: int) -> bytes:
    octets = value.get(name)
    if (
        not isinstance(octets, list)
        or len(octets) != size
        or not all(type(item) is int and 0 <= item <= 0xFF for item in octets)
    ):
        raise MalformedInput(f"SEV-SNP evidence: {name} is missing or not a list of {size} bytes")
    return bytes(octets)


def render_trustee_evidence(report: bytes) -> dict[str, Any]:
    """The JSON of a report's 1,184 bytes, without certificates: inverse of ``parse_trustee_evidence``.

    Raises:
        MalformedInput: not the length of a report.
    """
    if len(report) != REPORT_BYTES:
        raise MalformedInput(f"SEV-SNP report has {len(report)} bytes, expected {REPORT_BYTES}")

    def number(offset: int, size: int) -> int:
        return int.from_bytes(report[offset : offset + size], "little")

    version = number(0x000, 4)
    numbers = [*_NUMBERS, (0x048, 4, "key_info")]
    numbers += _SINCE_3 if version >= 3 else ()
    numbers += _SINCE_5 if version >= 5 else ()
    product = "Turin" if _is_turin(bytearray(report), version) else "Milan"
    fields: dict[str, Any] = {name: number(offset, size) for offset, size, name in numbers}
    for offset, size, name in _OCTETS:
        fields[name] = list(report[offset : offset + size])
    for offset, name in _TCBS:
        parts = decode_tcb(report[offset : offset + 8], product)
        known = ("bootloader", "tee", "snp", "microcode")
        fields[name] = {"fmc": parts.get("fmc"), **{part: parts[part] for part in known}}
    for offset, name in ((0x1E8, "current"), (0x1EC, "committed")):
        build, minor, major = report[offset : offset + 3]
        fields[name] = {"major": major, "minor": minor, "build": build}
    signature = {name: list(report[offset : offset + size]) for offset, size, name in _SIGNATURE}
    return {"attestation_report": {**fields, "signature": signature}, "cert_chain": None}

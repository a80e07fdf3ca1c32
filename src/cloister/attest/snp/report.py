"""The bytes of an SEV-SNP attestation report, versions 2 to 5: 1,184 bytes, integers little-endian.

====== ==== =================== ================================================================
offset size field               meaning
====== ==== =================== ================================================================
0x000  4    version             2 to 5
0x004  4    guest_svn           version that the guest's owner gave
0x008  8    policy              what the guest permits its host (``cloister.attest.snp.bits``)
0x010  16   family_id           given by the owner in the ID block
0x020  16   image_id            given by the owner in the ID block
0x030  4    vmpl                privilege level that asked; 0xFFFFFFFF: the host asked, not the guest
0x034  4    signature_algo      1: ECDSA P-384 with SHA-384, the only one accepted
0x038  8    current_tcb         versions that run now (``cloister.attest.snp.tcb``)
0x040  8    platform_info       state of the platform (``cloister.attest.snp.bits``)
0x048  4    key_info            bit 0 AUTHOR_KEY_EN, 1 MASK_CHIP_KEY, 2-4 SIGNING_KEY
0x04C  4    (reserved)          zero
0x050  64   report_data         what the guest binds
0x090  48   measurement         launch digest
0x0C0  32   host_data           given by the host at launch
0x0E0  48   id_key_digest       SHA-384 of the key that signed the ID block; zero if there is none
0x110  48   author_key_digest   SHA-384 of the key that certified the ID key; zero if there is none
0x140  32   report_id           of this guest
0x160  32   report_id_ma        of its migration agent; all ones if there is none
0x180  8    reported_tcb        versions that the signing key is derived from
0x188  3    cpuid               version 3 on: family, model, stepping; zero before
0x18B  21   (reserved)          zero
0x1A0  64   chip_id             zero where the host masks it; Turin uses the first 8 bytes
0x1E0  8    committed_tcb       versions that the host can no longer go back behind
0x1E8  3    current_version     build, minor, major of the firmware that runs
0x1EB  1    (reserved)          zero
0x1EC  3    committed_version   build, minor, major of the firmware that is committed
0x1EF  1    (reserved)          zero
0x1F0  8    launch_tcb          current_tcb when the guest was launched or imported
0x1F8  8    launch_mit_vector   version 5: mitigations in force at launch; zero before
0x200  8    current_mit_vector  version 5: mitigations in force now; zero before
0x208  152  (reserved)          zero
0x2A0  72   r                   signature over 0x000 to 0x29F
0x2E8  72   s
0x330  368  (reserved)          zero; not covered by the signature
====== ==== =================== ================================================================

The firmware that defines a new bit of ``policy`` or ``platform_info`` does not raise the version, so their
undefined bits are not refused here; the signature covers them.

Source: AMD 56860 (SEV-SNP Firmware ABI) revision 1.58, ATTESTATION_REPORT table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cloister.errors import BadSignature, MalformedInput

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
VERSIONS = range(2, 6)
VMPL_HOST = 0xFFFFFFFF
"""Value of ``vmpl`` in a report that the host asked for: it chose ``report_data`` too."""
SIGNING_KEYS = {0: "vcek", 1: "vlek"}
P384_ORDER = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)
_ECDSA_P384_SHA384 = 1
_COMPONENT_BYTES, _SCALAR_BYTES = 72, 48
_RESERVED = ((0x04C, 0x050), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, SIGNED_BYTES))
_RESERVED_BEFORE_3 = (0x188, 0x18B)
_RESERVED_BEFORE_5 = (0x1F8, 0x208)
_RESERVED_UNSIGNED = (SIGNED_BYTES + 2 * _COMPONENT_BYTES, REPORT_BYTES)
_POLICY_MUST_BE_ONE = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareVersion:
    """Version of the SEV firmware's interface, and its build."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The fields of a report; nothing in it has been verified. TCB values are raw: their layout depends on
    the product."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    author_key_en: bool
    mask_chip_key: bool
    signing_key: str
    """``vcek`` or ``vlek``."""
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    """Family, model, stepping; None in version 2, which does not say."""
    chip_id: bytes
    committed_tcb: bytes
    current_version: FirmwareVersion
    committed_version: FirmwareVersion
    launch_tcb: bytes
    launch_mit_vector: int | None
    current_mit_vector: int | None
    signed: bytes
    """What the signature is over."""
    r: int
    s: int


def parse_report(raw: bytes) -> Report:
    """Cut ``raw`` into its fields.

    Raises:
        MalformedInput: wrong length, version, algorithm or must-be-zero field.
        BadSignature: the report says of itself that it is not signed.
    """
    if len(raw) != REPORT_BYTES:
        raise MalformedInput(f"SEV-SNP report has {len(raw)} bytes, expected {REPORT_BYTES}")
    version, guest_svn, policy, family_id, image_id, vmpl, algorithm = struct.unpack_from("<IIQ16s16sII", raw)
    platform_info, key_info = struct.unpack_from("<QI", raw, 0x40)
    _check_form(raw, version, vmpl, algorithm, policy)
    return Report(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        current_tcb=raw[0x38:0x40],
        platform_info=platform_info,
        author_key_en=bool(key_info & 1),
        mask_chip_key=bool(key_info & 2),
        signing_key=_signing_key(key_info),
        report_data=raw[0x50:0x90],
        measurement=raw[0x90:0xC0],
        host_data=raw[0xC0:0xE0],
        id_key_digest=raw[0xE0:0x110],
        author_key_digest=raw[0x110:0x140],
        report_id=raw[0x140:0x160],
        report_id_ma=raw[0x160:0x180],
        reported_tcb=raw[0x180:0x188],
        cpuid=(raw[0x188], raw[0x189], raw[0x18A]) if version >= 3 else None,
        chip_id=raw[0x1A0:0x1E0],
        committed_tcb=raw[0x1E0:0x1E8],
        current_version=_firmware(raw, 0x1E8),
        committed_version=_firmware(raw, 0x1EC),
        launch_tcb=raw[0x1F0:0x1F8],
        launch_mit_vector=_mitigations(raw, 0x1F8, version),
        current_mit_vector=_mitigations(raw, 0x200, version),
        signed=raw[:SIGNED_BYTES],
        r=_scalar(raw, SIGNED_BYTES, "r"),
        s=_scalar(raw, SIGNED_BYTES + _COMPONENT_BYTES, "s"),
    )


def _check_form(raw: bytes, version: int, vmpl: int, algorithm: int, policy: int) -> None:
    if version not in VERSIONS:
        raise MalformedInput(f"SEV-SNP report has version {version}, expected 2 to 5")
    if algorithm != _ECDSA_P384_SHA384:
        raise MalformedInput(f"SEV-SNP report has signature algorithm {algorithm}, expected 1 (ECDSA P-384)")
    if vmpl > 3 and vmpl != VMPL_HOST:
        raise MalformedInput(f"SEV-SNP report has VMPL {vmpl}, expected 0 to 3")
    if not policy & _POLICY_MUST_BE_ONE:
        raise MalformedInput("SEV-SNP report: bit 17 of the guest policy is 0, must be 1")
    reserved = [*_RESERVED, _RESERVED_UNSIGNED]
    if version < 3:
        reserved.append(_RESERVED_BEFORE_3)
    if version < 5:
        reserved.append(_RESERVED_BEFORE_5)
    for begin, end in reserved:
        if any(raw[begin:end]):
            raise MalformedInput(
                f"SEV-SNP report version {version}: reserved bytes {begin:#x} to {end - 1:#x} are not zero"
            )


def _signing_key(key_info: int) -> str:
    """Raises unless the report is signed, by a key that is known."""
    if key_info >> 5:
        raise MalformedInput(f"SEV-SNP report: reserved bits of key_info {key_info:#x} are not zero")
    code = key_info >> 2 & 7
    if code == 7 or key_info & 2:
        raise BadSignature("SEV-SNP report is not signed: its host has masked the chip's key")
    if code not in SIGNING_KEYS:
        raise MalformedInput(f"SEV-SNP report: signing key {code}, expected 0 (VCEK) or 1 (VLEK)")
    return SIGNING_KEYS[code]


def _scalar(raw: bytes, offset: int, name: str) -> int:
    """One half of the signature: 48 bytes, little-endian, in a field of 72."""
    if any(raw[offset + _SCALAR_BYTES : offset + _COMPONENT_BYTES]):
        raise MalformedInput(f"SEV-SNP report: upper bytes of signature component {name} are not zero")
    value = int.from_bytes(raw[offset : offset + _SCALAR_BYTES], "little")
    if not 0 < value < P384_ORDER:
        raise BadSignature(f"SEV-SNP report: signature component {name} is out of range")
    return value


def _firmware(raw: bytes, offset: int) -> FirmwareVersion:
    build, minor, major = raw[offset : offset + 3]
    return FirmwareVersion(major=major, minor=minor, build=build)


def _mitigations(raw: bytes, offset: int, version: int) -> int | None:
    return int.from_bytes(raw[offset : offset + 8], "little") if version >= 5 else None

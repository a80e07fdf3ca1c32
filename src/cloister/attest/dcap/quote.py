"""The bytes of an Intel DCAP quote: SGX v3, TDX v4, TDX v5. Every length is exact: no trailing bytes.

Integers are little-endian. Header (48 bytes):

====== ==== =================== ============================================================
offset size field               meaning
====== ==== =================== ============================================================
0      2    version             3 (SGX), 4 or 5 (TDX)
2      2    att_key_type        2: ECDSA P-256, the only one accepted
4      4    tee_type            0 SGX, 0x81 TDX
8      2    (qe_svn)            version 3; reserved later
10     2    (pce_svn)           version 3; reserved later
12     16   qe_vendor_id        939a7233f79c4ca9940a0db3957f0607 (Intel)
28     20   user_data
====== ==== =================== ============================================================

Version 5 continues with body type (u16 at 48: 2 = TD 1.0, 3 = TD 1.5) and body size (u32 at 50); its body
begins at 54. Versions 3 and 4 have their body at 48.

TD report body (584 bytes; TD 1.5 appends two fields, 648 bytes), relative to the body:

====== ==== =================== ============================================================
offset size field               meaning
====== ==== =================== ============================================================
0      16   tee_tcb_svn         TDX module SVN, TDX module version, late microcode SVN, ...
16     48   mr_seam             measurement of the TDX module
64     48   mr_signer_seam      its signer; zero for Intel's
112    8    seam_attributes     zero for TDX 1.x
120    8    td_attributes       bit 0 DEBUG, 28 SEPT_VE_DISABLE, 29 MIGRATABLE, 30 PKS, 31 KL, 63 PERFMON
128    8    xfam                extended features that the TD may use
136    48   mr_td               measurement of the TD's initial contents
184    48   mr_config_id        software-defined identity of the configuration
232    48   mr_owner            software-defined identity of the owner
280    48   mr_owner_config     owner's configuration
328    192  rtmr0 .. rtmr3      four run-time measurement registers of 48 bytes
520    64   report_data         what the TD binds
584    16   tee_tcb_svn2        TD 1.5: current TDX module SVNs (the first are those at launch)
600    48   mr_service_td       TD 1.5: service TDs bound to this one; zero if there is none
====== ==== =================== ============================================================

SGX report body (384 bytes), also the form of the QE report, relative to the body:

====== ==== =================== ============================================================
offset size field               meaning
====== ==== =================== ============================================================
0      16   cpu_svn
16     4    misc_select
48     16   attributes          flags (8; bit 1 DEBUG), XFRM (8)
64     32   mr_enclave
128    32   mr_signer
256    2    isv_prod_id
258    2    isv_svn
320    64   report_data
====== ==== =================== ============================================================

After the body: u32 length of all that follows | signature r, s (64) by the attestation key over header and
body | attestation public key (64) | in versions 4 and 5: u16 6, u32 size | QE report (384) | signature
(64) by the PCK key over it | u16 size and QE authentication data | u16 5, u32 size, PEM chain: PCK
certificate, its CA, the root.

Source: Intel TDX DCAP Quote Generation Library and Quote Verification Library, revision 0.9, appendix 3;
Intel SGX ECDSA QuoteGenReference, appendix 4; Intel TDX Module ABI, TD_ATTRIBUTES and TEE_TCB_INFO.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cloister.errors import MalformedInput

MAX_QUOTE_BYTES = 64 * 1024
HEADER_BYTES = 48
TD10_BYTES = 584
TD15_BYTES = 648
SGX_REPORT_BYTES = 384
TEE_TYPE_SGX = 0
TEE_TYPE_TDX = 0x81
INTEL_QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_ECDSA_P256 = 2
_CERTIFICATION_PEM_CHAIN = 5
_CERTIFICATION_QE_REPORT = 6
_V5_BODIES = {2: TD10_BYTES, 3: TD15_BYTES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The parts of a quote, cut at the right places; nothing in it has been verified."""

    version: int
    tee_type: int
    body: bytes
    signed: bytes
    """Header and body: what ``signature`` is over."""
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain: bytes
    """PEM."""


def parse_quote(raw: bytes) -> Quote:
    """Cut ``raw`` into its parts.

    Raises:
        MalformedInput: unknown version or type, a length that does not fit exactly, or too many bytes.
    """
    if len(raw) > MAX_QUOTE_BYTES:
        raise MalformedInput(f"quote has {len(raw)} bytes, at most {MAX_QUOTE_BYTES} are read")
    reader = _Reader(raw, "quote")
    header = reader.take(HEADER_BYTES, "header")
    version, key_type, tee_type = struct.unpack_from("<HHI", header)
    _check_header(version, key_type, tee_type, header[12:28])
    body = reader.take(_body_bytes(reader, version), "body")
    signed = raw[: reader.offset]
    reader.declare(reader.u32("signature data length"), "signature data")
    signature = reader.take(64, "signature")
    attestation_key = reader.take(64, "attestation key")
    if version > 3:
        reader.expect_type(_CERTIFICATION_QE_REPORT, "certification data")
        reader.declare(reader.u32("certification data size"), "certification data")
    qe_report = reader.take(SGX_REPORT_BYTES, "QE report")
    qe_report_signature = reader.take(64, "QE report signature")
    qe_auth_data = reader.take(reader.u16("QE authentication data size"), "QE authentication data")
    reader.expect_type(_CERTIFICATION_PEM_CHAIN, "PCK certification data")
    reader.declare(reader.u32("PCK certification data size"), "PCK certification data")
    return Quote(
        version=version,
        tee_type=tee_type,
        body=body,
        signed=signed,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=qe_auth_data,
        pck_chain=reader.rest(),
    )


def _check_header(version: int, key_type: int, tee_type: int, vendor: bytes) -> None:
    expected = {TEE_TYPE_SGX: (3,), TEE_TYPE_TDX: (4, 5)}.get(tee_type)
    if expected is None:
        raise MalformedInput(f"quote: unknown TEE type {tee_type:#x}, expected 0 (SGX) or 0x81 (TDX)")
    if version not in expected:
        raise MalformedInput(
            f"quote: version {version} with TEE type {tee_type:#x}, expected one of {expected}"
        )
    if key_type != _ECDSA_P256:
        raise MalformedInput(f"quote: attestation key type {key_type}, expected 2 (ECDSA P-256)")
    if vendor != INTEL_QE_VENDOR_ID:
        raise MalformedInput(f"quote: QE vendor {vendor.hex()}, expected {INTEL_QE_VENDOR_ID.hex()} (Intel)")


def _body_bytes(reader: _Reader, version: int) -> int:
    if version == 3:
        return SGX_REPORT_BYTES
    if version == 4:
        return TD10_BYTES
    body_type, size = reader.u16("body type"), reader.u32("body size")
    if body_type not in _V5_BODIES:
        raise MalformedInput(f"quote: body type {body_type}, expected 2 (TD 1.0) or 3 (TD 1.5)")
    if size != _V5_BODIES[body_type]:
        raise MalformedInput(
            f"quote: body type {body_type} with {size} bytes, expected {_V5_BODIES[body_type]}"
        )
    return size


class _Reader:
    """Exact reads from one buffer."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw = raw
        self._what = what
        self.offset = 0

    def take(self, count: int, field: str) -> bytes:
        end = self.offset + count
        if end > len(self._raw):
            raise MalformedInput(
                f"{self._what} ends inside {field}: needs {end} bytes, found {len(self._raw)}"
            )
        part = self._raw[self.offset : end]
        self.offset = end
        return part

    def u16(self, field: str) -> int:
        return int.from_bytes(self.take(2, field), "little")

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "little")

    def expect_type(self, expected: int, field: str) -> None:
        found = self.u16(f"{field} type")
        if found != expected:
            raise MalformedInput(f"{self._what}: {field} has type {found}, expected {expected}")

    def declare(self, count: int, field: str) -> None:
        """Every length in a quote reaches to its end; anything else is truncation or trailing garbage."""
        found = len(self._raw) - self.offset
        if found != count:
            raise MalformedInput(f"{self._what}: {field} has {found} bytes, its length field says {count}")

    def rest(self) -> bytes:
        return self.take(len(self._raw) - self.offset, "rest")

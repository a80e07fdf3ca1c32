"""The bytes of simulated quotes, TDX v4 and SGX v3: header and report are filled in, the rest is signed
beforehand.

The layout is that of ``cloister.attest.dcap.quote``.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attest.simulated.collateral import (
    QE_ATTRIBUTES,
    QE_ISV_PROD_IDS,
    QE_ISV_SVN,
    QE_MR_SIGNER,
    TEE_TCB_SVN,
    Tee,
    raw_signature,
)
from cloister.errors import MalformedInput

_INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_PCE_SVN = 13
_HEADERS: dict[Tee, bytes] = {
    "TDX": struct.pack("<HHIHH16s20s", 4, 2, 0x81, 0, 0, _INTEL, bytes(20)),
    "SGX": struct.pack("<HHIHH16s20s", 3, 2, 0x00, QE_ISV_SVN, _PCE_SVN, _INTEL, bytes(20)),
}
_MR_SEAM = hashlib.sha384(b"simulated TDX module").digest()
_QE_AUTH_DATA = bytes(range(32))
_XFAM = bytes.fromhex("e702e70000000000")
_DEBUG = 1 << 0
_SEPT_VE_DISABLE = 1 << 28
ZERO_REGISTER = bytes(48)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """What a simulated trust domain says of itself; the module's own fields are filled in by ``to_bytes``."""

    report_data: bytes
    mr_td: bytes
    mr_config_id: bytes = ZERO_REGISTER
    mr_owner: bytes = ZERO_REGISTER
    mr_owner_config: bytes = ZERO_REGISTER
    rtmrs: tuple[bytes, ...] = (ZERO_REGISTER,) * 4
    debug: bool = False
    sept_ve_disable: bool = True
    more_attributes: int = 0
    """Further bits of TD_ATTRIBUTES to set."""

    def to_bytes(self) -> bytes:
        """The 584 bytes of a TD 1.0 report body.

        Raises:
            MalformedInput: a field of the wrong length.
        """
        registers = (self.mr_td, self.mr_config_id, self.mr_owner, self.mr_owner_config, *self.rtmrs)
        if len(self.rtmrs) != 4 or any(len(register) != 48 for register in registers):
            raise MalformedInput("a TD report has four run-time registers, and registers have 48 bytes")
        if len(self.report_data) != 64:
            raise MalformedInput(f"report_data has 64 bytes, found {len(self.report_data)}")
        attributes = (_DEBUG if self.debug else 0) | (_SEPT_VE_DISABLE if self.sept_ve_disable else 0)
        attributes |= self.more_attributes
        module = TEE_TCB_SVN + _MR_SEAM + bytes(48) + bytes(8)
        return b"".join((module, attributes.to_bytes(8, "little"), _XFAM, *registers, self.report_data))


class Report(Protocol):
    """The body of a quote."""

    def to_bytes(self) -> bytes:
        """Its bytes, all of its TEE's fixed length."""
        ...


class QuoteSigner:
    """A simulated quoting enclave: holds the attestation key, which the PCK key has certified once."""

    def __init__(
        self,
        attestation_key: ec.EllipticCurvePrivateKey,
        pck_key: ec.EllipticCurvePrivateKey,
        pck_chain: bytes,
        *,
        tee: Tee = "TDX",
    ) -> None:
        public = attestation_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        qe_report = _qe_report(hashlib.sha256(public + _QE_AUTH_DATA).digest(), QE_ISV_PROD_IDS[tee])
        certification = b"".join(
            (
                qe_report,
                raw_signature(pck_key, qe_report),
                struct.pack("<H", len(_QE_AUTH_DATA)),
                _QE_AUTH_DATA,
                struct.pack("<HI", 5, len(pck_chain)),
                pck_chain,
            )
        )
        # Version 3 has the certification as it is, version 4 inside of certification data of type 6.
        wrapper = struct.pack("<HI", 6, len(certification)) if tee == "TDX" else b""
        self._key = attestation_key
        self._header = _HEADERS[tee]
        self._tail = public + wrapper + certification

    def sign(self, report: Report) -> bytes:
        """A complete quote over ``report``."""
        signed = self._header + report.to_bytes()
        length = struct.pack("<I", 64 + len(self._tail))
        return signed + length + raw_signature(self._key, signed) + self._tail


def _qe_report(report_data: bytes, isv_prod_id: int) -> bytes:
    """SGX report body, 384 bytes.

    Source: Intel 64 SDM volume 3D, table 40-29 (REPORT structure).
    """
    return struct.pack(
        "<16s4s28s16s32s32s32s96sHH60s64s",
        bytes(16),  # CPUSVN
        bytes(4),  # MISCSELECT
        bytes(28),
        QE_ATTRIBUTES,
        hashlib.sha256(b"simulated quoting enclave: code").digest(),
        bytes(32),
        QE_MR_SIGNER,
        bytes(96),
        isv_prod_id,
        QE_ISV_SVN,
        bytes(60),
        report_data,
    )

"""The bytes of a simulated SEV-SNP report. The layout is that of ``cloister.attest.snp.report``."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cloister.attest.snp.report import REPORT_BYTES
from cloister.errors import MalformedInput

DEFAULT_POLICY = 0x30000
"""SMT permitted, no debugging, no migration."""
_DEBUG = 1 << 19
_PLATFORM_INFO = 0x25
_FIRMWARE = bytes([49, 55, 1])
_MITIGATIONS = 0x0B
_KEY_INFO = {"vcek": 0, "vlek": 1 << 2}
_CPUID = {"Milan": bytes([0x19, 0x01, 1]), "Genoa": bytes([0x19, 0x11, 1]), "Turin": bytes([0x1A, 0x02, 1])}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestReport:
    """What a simulated guest says of itself; the platform's own fields are filled in by ``sign``."""

    report_data: bytes
    measurement: bytes
    host_data: bytes = bytes(32)
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    report_id: bytes = bytes(32)
    guest_svn: int = 0
    policy: int = DEFAULT_POLICY
    debug: bool = False
    vmpl: int = 0
    version: int = 5

    def sign(
        self,
        key: ec.EllipticCurvePrivateKey,
        *,
        product: str,
        kind: str,
        tcb: bytes,
        chip_id: bytes,
        current_tcb: bytes | None = None,
        committed_tcb: bytes | None = None,
    ) -> bytes:
        """The report of 1,184 bytes.

        Args:
            key: the VCEK or VLEK.
            tcb: reported TCB; current, committed and launch TCB too, unless they are given.
            chip_id: 64 bytes, or fewer to be followed by zeros.
        Raises:
            MalformedInput: a field of the wrong length.
        """
        self._check_lengths()
        current, committed = current_tcb or tcb, committed_tcb or tcb
        cpuid = _CPUID[product] if self.version >= 3 else bytes(3)
        mitigations = _MITIGATIONS if self.version >= 5 else 0
        policy = self.policy | (_DEBUG if self.debug else 0)
        signed = b"".join(
            (
                struct.pack("<IIQ", self.version, self.guest_svn, policy),
                self.family_id,
                self.image_id,
                struct.pack("<II", self.vmpl, 1),
                current,
                struct.pack("<QII", _PLATFORM_INFO, _KEY_INFO[kind], 0),
                self.report_data,
                self.measurement,
                self.host_data,
                self.id_key_digest,
                self.author_key_digest,
                self.report_id,
                b"\xff" * 32,
                tcb,
                cpuid,
                bytes(21),
                chip_id.ljust(64, b"\x00"),
                committed,
                _FIRMWARE,
                bytes(1),
                _FIRMWARE,
                bytes(1),
                current,
                struct.pack("<QQ", mitigations, mitigations),
                bytes(152),
            )
        )
        return sign_report(key, signed)

    def _check_lengths(self) -> None:
        lengths = {
            "report_data": 64,
            "measurement": 48,
            "host_data": 32,
            "family_id": 16,
            "image_id": 16,
            "id_key_digest": 48,
            "author_key_digest": 48,
            "report_id": 32,
        }
        for name, expected in lengths.items():
            found = len(getattr(self, name))
            if found != expected:
                raise MalformedInput(f"{name} has {expected} bytes, found {found}")


def sign_report(key: ec.EllipticCurvePrivateKey, signed: bytes) -> bytes:
    """``signed`` (0x000 to 0x29F) with its signature and the reserved bytes after it."""
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
    signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
    return (signed + signature).ljust(REPORT_BYTES, b"\x00")

"""A simulated AMD for all tests of SEV-SNP: RSA keys are made once, platforms of any kind from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest import verify_evidence
from cloister.attest.simulated.snp_pki import (
    SimulatedChip,
    SnpAuthority,
    make_ark,
    make_ark_crl,
    make_authority,
    make_endorsement,
    new_rsa_key,
)
from cloister.attest.simulated.snp_report import GuestReport
from cloister.attest.snp import SnpClaims, SnpEndorsements
from cloister.attest.snp.tcb import encode_tcb

NOW = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
REPORT_DATA = bytes(range(64))
MEASUREMENT = bytes(range(48))
HWID = bytes(range(1, 65))
TCB = {"fmc": 1, "bootloader": 4, "tee": 2, "snp": 24, "microcode": 219}


@cache
def rsa_key(number: int) -> RSAPrivateKey:
    """One of a few RSA keys, made once."""
    return new_rsa_key()


@dataclass(frozen=True)
class Platform:
    """A processor of a simulated AMD."""

    ark: SnpAuthority
    authority: SnpAuthority
    chip: SimulatedChip
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def endorsements(self, **more: Any) -> SnpEndorsements:
        """All of its certificates, without a CRL."""
        names = ("vcek", "ask") if self.chip.kind == "vcek" else ("vlek", "asvk")
        members: dict[str, Any] = {
            names[0]: der(self.certificate),
            names[1]: der(self.authority.certificate),
            "ark": der(self.ark.certificate),
        }
        return SnpEndorsements(**{**members, **more})

    def crl(self, *serials: int, now: datetime = NOW) -> bytes:
        """The root's revocation list."""
        return make_ark_crl(self.ark, now, revoked=serials)

    def report(self, signing: dict[str, Any] | None = None, **fields: Any) -> bytes:
        """A report; ``signing`` overrides what the platform fills in."""
        guest = GuestReport(**{"report_data": REPORT_DATA, "measurement": MEASUREMENT, **fields})
        own = {
            "product": self.chip.product,
            "kind": self.chip.kind,
            "tcb": self.chip.tcb,
            "chip_id": self.chip.hwid,
        }
        return guest.sign(self.key, **{**own, **(signing or {})})

    def verify(
        self, raw: bytes, endorsements: SnpEndorsements | None = None, now: datetime = NOW
    ) -> SnpClaims:
        """Verify under this platform's root."""
        given = endorsements or self.endorsements()
        claims = verify_evidence("sev-snp", raw, given, now, roots=[self.ark.certificate])
        assert isinstance(claims, SnpClaims)
        return claims


def make_platform(product: str = "Genoa", kind: str = "vcek", **chip: Any) -> Platform:
    """A platform; ``chip`` overrides what its certificate says."""
    ark = make_ark(product, rsa_key(0), NOW)
    authority = make_authority(ark, product, kind, rsa_key(1), NOW)
    own = SimulatedChip(
        product=product,
        kind=kind,
        tcb=encode_tcb(TCB, product),
        hwid=HWID[:8] if product == "Turin" else HWID,
    )
    own = replace(own, **chip)
    key = ec.generate_private_key(ec.SECP384R1())
    return Platform(ark, authority, own, key, make_endorsement(authority, own, key.public_key(), NOW))


def der(certificate: x509.Certificate) -> bytes:
    """Its DER."""
    return certificate.public_bytes(Encoding.DER)


@pytest.fixture(scope="session")
def genoa() -> Platform:
    """A Genoa processor with a VCEK."""
    return make_platform()


@pytest.fixture(scope="session")
def turin() -> Platform:
    """A Turin processor with a VCEK."""
    return make_platform("Turin")


@pytest.fixture(scope="session")
def vlek() -> Platform:
    """A Milan processor with its provider's VLEK."""
    return make_platform("Milan", "vlek")

"""What endorsements consist of, and until when each part holds. Reads them; verifies nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509

from cloister.attest.dcap.chain import common_name
from cloister.attest.dcap.endorsements import DcapEndorsements, parse_signed_json, validity
from cloister.attest.model import Endorsements
from cloister.attest.snp.certificate import load_certificate
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.attest.snp.extensions import parse_extensions
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import MalformedInput

_AMD_CERTIFICATES = ("vcek", "vlek", "ask", "asvk", "ark")


@dataclass(frozen=True, slots=True)
class Part:
    """One document, list or certificate."""

    what: str
    issued: datetime
    next_update: datetime | None
    """When it ends; None for a CRL that does not say."""
    evaluation_data_number: int | None = None
    """Of Intel's documents."""

    def state(self, now: datetime) -> str:
        """``current``, ``expired`` or ``not yet valid``."""
        if now < self.issued:
            return "not yet valid"
        return "expired" if self.next_update is not None and now > self.next_update else "current"


def read_parts(endorsements: Endorsements) -> tuple[Part, ...]:
    """The parts of Intel's or AMD's endorsements; none for those of other vendors.

    Raises:
        MalformedInput: a part cannot be read.
    """
    if isinstance(endorsements, DcapEndorsements):
        return _intel(endorsements)
    if isinstance(endorsements, SnpEndorsements):
        return _amd(endorsements)
    return ()


def unusable_parts(endorsements: Endorsements, now: datetime) -> tuple[str, ...]:
    """What does not hold at ``now``, one line each."""
    return tuple(
        f"{part.what} {_when(part, now)}" for part in read_parts(endorsements) if part.state(now) != "current"
    )


def read_platform(endorsements: Endorsements) -> dict[str, str]:
    """Whose endorsements these say that they are, as far as they say; names as in an entry's ``platform``.

    Raises:
        MalformedInput: the part that says it cannot be read.
    """
    if isinstance(endorsements, DcapEndorsements):
        document = parse_signed_json(endorsements.tcb_info, "TCB info")
        return {name: str(document.get(name, ""))[:40].lower() for name in ("id", "fmspc")}
    if isinstance(endorsements, SnpEndorsements):
        for kind in ("vcek", "vlek"):
            der = getattr(endorsements, kind)
            if der is not None:
                own = parse_extensions(load_certificate(der, f"{kind.upper()} certificate"))
                return {"product": own.product, "kind": own.kind, "chip_id": own.hwid.hex()}
    return {}


def read_crl(der: bytes, what: str) -> Part:
    """A revocation list.

    Raises:
        MalformedInput: it is not one in DER.
    """
    try:
        crl = x509.load_der_x509_crl(der)
        return Part(what, crl.last_update_utc, crl.next_update_utc)
    except UNREADABLE as error:
        raise MalformedInput(f"{what} is not a CRL in DER") from error


@lru_cache(maxsize=64)
def _intel(endorsements: DcapEndorsements) -> tuple[Part, ...]:
    return tuple(_intel_parts(endorsements))


@lru_cache(maxsize=64)
def _amd(endorsements: SnpEndorsements) -> tuple[Part, ...]:
    return tuple(_amd_parts(endorsements))


def _intel_parts(endorsements: DcapEndorsements) -> Iterator[Part]:
    documents = (("TCB info", endorsements.tcb_info), ("QE identity", endorsements.qe_identity))
    for what, text in documents:
        document = parse_signed_json(text, what)
        number = document.get("tcbEvaluationDataNumber")
        yield Part(what, *validity(document, what), number if isinstance(number, int) else None)
    yield read_crl(endorsements.pck_crl, "PCK CRL")
    yield read_crl(endorsements.root_ca_crl, "root CA CRL")
    chains = (
        ("PCK CRL issuer", endorsements.pck_crl_issuer_chain),
        ("TCB info signer", endorsements.tcb_info_issuer_chain),
        ("QE identity signer", endorsements.qe_identity_issuer_chain),
    )
    for what, pem in chains:
        try:
            certificate = x509.load_pem_x509_certificates(pem.encode())[0]
            name = common_name(certificate)
        except UNREADABLE as error:
            raise MalformedInput(f"{what}: not a chain of certificates in PEM") from error
        yield Part(f"{what} ({name})", certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _amd_parts(endorsements: SnpEndorsements) -> Iterator[Part]:
    for kind in _AMD_CERTIFICATES:
        der = getattr(endorsements, kind)
        if der is not None:
            certificate = load_certificate(der, f"{kind.upper()} certificate")
            yield Part(f"{kind.upper()} ({certificate.name})", certificate.not_before, certificate.not_after)
    if endorsements.crl is not None:
        yield read_crl(endorsements.crl, "ARK CRL")


def _when(part: Part, now: datetime) -> str:
    if part.state(now) == "expired" and part.next_update is not None:
        return f"expired at {render_time(part.next_update)}"
    return f"is not valid before {render_time(part.issued)}"


def render_time(moment: datetime) -> str:
    """RFC 3339, UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Is an SEV-SNP report genuine? The chain, the signature, and that both are of the same processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.attest.model import Endorsements
from cloister.attest.snp.chain import (
    KeyChain,
    RevocationList,
    check_revocation,
    check_validity,
    open_chain,
    open_crl,
)
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.attest.snp.extensions import KeyExtensions
from cloister.attest.snp.report import Report, parse_report
from cloister.attest.snp.table import split_evidence
from cloister.attest.snp.tcb import product_of_cpuid
from cloister.errors import BadSignature, EndorsementMismatch, MalformedInput

CHIP_ID_BYTES = 64


@dataclass(frozen=True, slots=True)
class VerifiedReport:
    """A genuine report, the key that signed it, and the CRL that was consulted."""

    report: Report
    chain: KeyChain
    crl: RevocationList | None


def verify_report(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> VerifiedReport:
    """Establish that an SEV-SNP report is genuine.

    1. The report, and the certificate table after it if there is one, have their form, exactly.
    2. The certificate chain of the key that the report names ends in one of ``roots`` (AMD's pinned keys,
       if None). Given endorsements come before those in the table.
    3. Every date holds at ``now``; the chain's authority is not revoked.
    4. That key signed the report.
    5. The certificate speaks of this report's processor: product, security versions, chip.

    A report without ``chip_id`` (its host masks it) is genuine: the VCEK's certificate identifies the chip.

    Raises:
        MalformedInput: the report or a certificate does not have its form, or there is no VCEK or VLEK.
        VerificationError: a step fails; the subclass says which kind.
    """
    content, table = split_evidence(raw)
    report = parse_report(content)
    given = _given(endorsements).completed_by(table)
    chain = _open(given, report.signing_key, roots)
    check_validity(chain.windows, now)
    crl = _check_crl(given.crl, chain, now)
    _check_signature(report, chain.key)
    _check_product(report, chain)
    _check_tcb(report, chain)
    _check_chip(report, chain)
    return VerifiedReport(report, chain, crl)


def chip_id_of(extensions: KeyExtensions) -> bytes:
    """The CHIP_ID that a certificate is of, 64 bytes (Turin's eight end in zeros); empty for a VLEK."""
    return extensions.hwid and extensions.hwid.ljust(CHIP_ID_BYTES, b"\x00")


def _given(endorsements: Endorsements | None) -> SnpEndorsements:
    if endorsements is None:
        return SnpEndorsements()
    if not isinstance(endorsements, SnpEndorsements):
        raise MalformedInput(
            f"an SEV-SNP report needs AMD's endorsements, found {type(endorsements).__name__}"
        )
    return endorsements


def _open(given: SnpEndorsements, kind: str, roots: Sequence[x509.Certificate] | None) -> KeyChain:
    key, authority = (given.vcek, given.ask) if kind == "vcek" else (given.vlek, given.asvk)
    if key is None:
        raise MalformedInput(
            f"an SEV-SNP report signed with a {kind.upper()} cannot be verified without its certificate",
            hint="AMD's Key Distribution Service has it, or the host's certificate table",
        )
    return open_chain(key, authority, given.ark, None if roots is None else tuple(roots))


def _check_crl(der: bytes | None, chain: KeyChain, now: datetime) -> RevocationList | None:
    if der is None:
        return None
    crl = open_crl(der, chain.root)
    check_validity((("CRL", crl.issued, crl.expires),), now)
    check_revocation(chain, crl)
    return crl


def _check_signature(report: Report, key: ec.EllipticCurvePublicKey) -> None:
    try:
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise BadSignature(f"SEV-SNP report is not signed by this {report.signing_key.upper()}") from error


def _check_product(report: Report, chain: KeyChain) -> None:
    """From version 3 on the report names its processor."""
    if report.cpuid is None:
        return
    family, model, _ = report.cpuid
    found = product_of_cpuid(family, model)
    if found != chain.extensions.product:
        raise EndorsementMismatch(
            f"SEV-SNP report is of family {family:#x} model {model:#x} ({found or 'unknown'}),"
            f" its certificate of {chain.extensions.product_name}"
        )


def _check_tcb(report: Report, chain: KeyChain) -> None:
    """The endorsement key is derived from the reported versions: its certificate has the same."""
    if report.reported_tcb != chain.extensions.tcb:
        raise EndorsementMismatch(
            f"SEV-SNP report's TCB is {report.reported_tcb.hex()}, its certificate's"
            f" {chain.extensions.tcb.hex()}"
        )


def _check_chip(report: Report, chain: KeyChain) -> None:
    """A VLEK is of a provider, not of a chip; there is nothing to compare."""
    if chain.extensions.kind == "vlek" or not any(report.chip_id):
        return
    if report.chip_id != chip_id_of(chain.extensions):
        raise EndorsementMismatch(
            f"SEV-SNP report is of chip {report.chip_id[:8].hex()}…, its certificate of"
            f" {chain.extensions.hwid[:8].hex()}…"
        )

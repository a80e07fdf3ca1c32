"""Collateral that has been verified once, and is checked against the time at each use.

``open_collateral`` checks what does not depend on the time: chains, signatures, issuers, forms. Its results
are cached by collateral and root, so that a service that sees many quotes of few platforms pays once.
``check_validity`` checks what does: every date against ``now``.

Source: Intel SGX/TDX Provisioning Certification Service API, version 4; PCK Certificate and CRL Profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import dcap_qvl  # type: ignore[import-untyped]
from cryptography import x509

from cloister.attest.dcap.chain import common_name, open_crl_issuer_chain, open_tcb_signing_chain
from cloister.attest.dcap.ecdsa import key_of, verify_raw
from cloister.attest.dcap.endorsements import DcapEndorsements, parse_signed_json, validity
from cloister.attest.dcap.roots import spki
from cloister.attest.der import check_signature_form
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import BadSignature, EndorsementMismatch, MalformedInput, Revoked, StaleEvidence

TCB_INFO_VERSION = 3
QE_IDENTITY_VERSION = 2


@dataclass(frozen=True, slots=True)
class Window:
    """From when until when one piece of collateral holds, both inclusive."""

    what: str
    begin: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Collateral:
    """Verified collateral under one root."""

    tcb_info: Mapping[str, Any]
    qe_identity: Mapping[str, Any]
    pck_authority: x509.Certificate
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    tcb_signers: tuple[x509.Certificate, ...]
    windows: tuple[Window, ...]
    tcb_evaluation_data_number: int
    qe_evaluation_data_number: int
    for_dcap_qvl: dcap_qvl.QuoteCollateralV3

    @property
    def issued(self) -> datetime:
        """When the oldest of the documents and lists was issued; certificates do not count."""
        return min(window.begin for window in self.windows if "certificate" not in window.what)

    @property
    def expires(self) -> datetime:
        """When the first of all parts expires."""
        return min(window.end for window in self.windows)


@lru_cache(maxsize=64)
def open_collateral(endorsements: DcapEndorsements, root: x509.Certificate) -> Collateral:
    """Verify all signatures of ``endorsements`` up to ``root``.

    Raises:
        MalformedInput: a part does not have its form, or a version that is not known here.
        UntrustedRoot, BadSignature, EndorsementMismatch: a part does not hold, or is not what it should be.
    """
    authority = open_crl_issuer_chain(endorsements.pck_crl_issuer_chain, root)
    tcb_signer = open_tcb_signing_chain(endorsements.tcb_info_issuer_chain, root, "TCB info")
    qe_signer = open_tcb_signing_chain(endorsements.qe_identity_issuer_chain, root, "QE identity")
    root_crl = _open_crl(endorsements.root_ca_crl, root, "root CA CRL")
    pck_crl = _open_crl(endorsements.pck_crl, authority, "PCK CRL")
    tcb_info = _open_document(
        endorsements.tcb_info, endorsements.tcb_info_signature, tcb_signer, TCB_INFO_VERSION, "TCB info"
    )
    qe_identity = _open_document(
        endorsements.qe_identity,
        endorsements.qe_identity_signature,
        qe_signer,
        QE_IDENTITY_VERSION,
        "QE identity",
    )
    windows = (
        certificate_window(authority),
        certificate_window(tcb_signer),
        certificate_window(qe_signer),
        _crl_window(root_crl, "root CA CRL"),
        _crl_window(pck_crl, "PCK CRL"),
        Window("TCB info", *validity(tcb_info, "TCB info")),
        Window("QE identity", *validity(qe_identity, "QE identity")),
    )
    signers = (tcb_signer, qe_signer)
    for_dcap_qvl = dcap_qvl.QuoteCollateralV3(
        **{name: getattr(endorsements, name) for name in DcapEndorsements.__dataclass_fields__}
    )
    return Collateral(
        tcb_info,
        qe_identity,
        authority,
        root_crl,
        pck_crl,
        signers,
        windows,
        _evaluation_data_number(tcb_info, "TCB info"),
        _evaluation_data_number(qe_identity, "QE identity"),
        for_dcap_qvl,
    )


def check_validity(windows: tuple[Window, ...], now: datetime) -> None:
    """Establish that ``now`` lies in each window.

    Raises:
        StaleEvidence: one has ended, or not begun.
    """
    for window in windows:
        if now < window.begin:
            raise StaleEvidence(
                f"{window.what} is not valid before {_render(window.begin)}, it is {_render(now)}",
                hint="check this machine's clock",
            )
        if now > window.end:
            raise StaleEvidence(
                f"{window.what} expired at {_render(window.end)}, it is {_render(now)}",
                hint="fetch fresh collateral" if "certificate" not in window.what else "",
            )


def check_revocation(collateral: Collateral, pck: x509.Certificate, authority: x509.Certificate) -> None:
    """Establish that no certificate in use has been revoked.

    Raises:
        EndorsementMismatch: the PCK CRL is of another CA than the one that issued ``pck``.
        Revoked: a certificate is on its issuer's list.
    """
    if spki(authority) != spki(collateral.pck_authority):
        raise EndorsementMismatch(
            f"PCK CRL is of {common_name(collateral.pck_authority)!r} (another key),"
            f" the PCK certificate is of {common_name(authority)!r}"
        )
    for certificate in (authority, *collateral.tcb_signers):
        _check_not_listed(collateral.root_crl, certificate)
    _check_not_listed(collateral.pck_crl, pck)


@lru_cache(maxsize=256)
def certificate_window(certificate: x509.Certificate) -> Window:
    """The validity of a certificate."""
    what = f"certificate {common_name(certificate)!r}"
    return Window(what, certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _check_not_listed(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> None:
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise Revoked(
            f"certificate {common_name(certificate)!r} (serial {certificate.serial_number:x})"
            " has been revoked by its issuer"
        )


def _open_crl(der: bytes, issuer: x509.Certificate, what: str) -> x509.CertificateRevocationList:
    check_signature_form(der, what)
    try:
        crl = x509.load_der_x509_crl(der)
        _ = crl.extensions, crl.issuer.rfc4514_string(), crl.last_update_utc, crl.next_update_utc
        genuine = crl.is_signature_valid(key_of(issuer))
    except UNREADABLE as error:
        raise MalformedInput(f"{what} is not a CRL in DER") from error
    if crl.issuer != issuer.subject:
        raise EndorsementMismatch(
            f"{what} is issued by {crl.issuer.rfc4514_string()!r},"
            f" expected {issuer.subject.rfc4514_string()!r}"
        )
    if not genuine:
        raise BadSignature(f"signature of {what} does not verify")
    return crl


def _crl_window(crl: x509.CertificateRevocationList, what: str) -> Window:
    if crl.next_update_utc is None:
        raise MalformedInput(f"{what} does not say when its next update is")
    # At nextUpdate itself a CRL is expired for dcap-qvl, while TCB info is not.
    return Window(what, crl.last_update_utc, crl.next_update_utc - timedelta(seconds=1))


def _open_document(
    text: str, signature: bytes, signer: x509.Certificate, version: int, what: str
) -> Mapping[str, Any]:
    verify_raw(key_of(signer), signature, text.encode(), what)
    document = parse_signed_json(text, what)
    if document.get("version") != version:
        raise MalformedInput(f"{what} has version {document.get('version')!r}, expected {version}")
    return document


def _evaluation_data_number(document: Mapping[str, Any], what: str) -> int:
    number = document.get("tcbEvaluationDataNumber")
    if not isinstance(number, int):
        raise MalformedInput(f"{what} does not state its evaluation data number")
    return number


def _render(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

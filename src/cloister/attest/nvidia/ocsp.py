"""OCSP responses as offline endorsements: which certificates their issuers have not revoked.

A response counts only for the certificate whose issuer (by the hashes of name and key) and serial number it
names, if it is signed by that issuer or by a responder that the issuer has appointed, and if ``now`` lies in
its validity.

Source: RFC 6960, sections 3.2 and 4.2.2.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.attest.p384 import Chain, check_dates, common_name, is_issued_by, key_of
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import BadSignature, MalformedInput, Revoked, StaleEvidence

MAX_RESPONDER_CERTIFICATES = 4


@dataclass(frozen=True, slots=True)
class Statement:
    """What a response says of one certificate, with its signature still to be checked."""

    response: ocsp.OCSPResponse
    serial_number: int
    begin: datetime
    end: datetime


def check_revocation(responses: Iterable[bytes], chain: Chain, *, subjects: slice, now: datetime) -> bool:
    """Establish that no certificate of ``chain`` is revoked, as far as ``responses`` tell.

    Args:
        subjects: the part of the chain that OCSP is asked about.
    Returns:
        Whether there is a response, saying *good*, for every one of these.
    Raises:
        MalformedInput: something that is not an OCSP response.
        BadSignature, StaleEvidence: a response on one of these does not hold, or not now.
        Revoked: one says that a certificate is revoked, or not known to its issuer.
    """
    statements = [_parse(der) for der in responses]
    complete = True
    for certificate, issuer in list(zip(chain.certificates, chain.certificates[1:], strict=False))[subjects]:
        matching = [item for item in statements if _is_about(item, certificate, issuer)]
        for statement in matching:
            _check(statement, certificate, issuer, now)
        complete = complete and bool(matching)
    return complete


@lru_cache(maxsize=128)
def _parse(der: bytes) -> Statement:
    try:
        response = ocsp.load_der_ocsp_response(der)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise MalformedInput(f"OCSP response has status {response.response_status.name}")
        serial, begin, end = response.serial_number, response.this_update_utc, response.next_update_utc
        _ = response.issuer_key_hash, response.issuer_name_hash, response.hash_algorithm
        _ = response.certificate_status, response.certificates, response.signature_hash_algorithm
        critical = [extension.oid.dotted_string for extension in response.extensions if extension.critical]
    except UNREADABLE as error:
        raise MalformedInput("OCSP response cannot be read") from error
    if end is None or critical:
        raise MalformedInput("OCSP response says no next update, or has a critical extension")
    return Statement(response, serial, begin, end)


@lru_cache(maxsize=512)
def _issuer_hashes(issuer: x509.Certificate, algorithm: type[hashes.HashAlgorithm]) -> tuple[bytes, bytes]:
    point = issuer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    digests = []
    for content in (issuer.subject.public_bytes(), point):
        digest = hashes.Hash(algorithm())
        digest.update(content)
        digests.append(digest.finalize())
    return digests[0], digests[1]


def _is_about(statement: Statement, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    response = statement.response
    return statement.serial_number == certificate.serial_number and (
        response.issuer_name_hash,
        response.issuer_key_hash,
    ) == _issuer_hashes(issuer, type(response.hash_algorithm))


def _check(
    statement: Statement, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime
) -> None:
    name = common_name(certificate)
    signer = _signer(statement.response, issuer, name)
    check_dates(signer, now)
    if not statement.begin <= now <= statement.end:
        raise StaleEvidence(
            f"OCSP response on {name!r} holds from {statement.begin} to {statement.end}, it is {now}",
            hint="fetch fresh OCSP responses",
        )
    if statement.response.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        raise Revoked(
            f"certificate {name!r} (serial {certificate.serial_number:x}) is"
            f" {statement.response.certificate_status.name.lower()}, says its issuer"
        )


@lru_cache(maxsize=128)
def _signer(response: ocsp.OCSPResponse, issuer: x509.Certificate, name: str) -> x509.Certificate:
    """The certificate that signed ``response``: the issuer's, or one that it appointed for OCSP."""
    for candidate in (issuer, *response.certificates[:MAX_RESPONDER_CERTIFICATES]):
        if candidate != issuer and not _is_appointed(candidate, issuer):
            continue
        algorithm = response.signature_hash_algorithm
        if not isinstance(algorithm, hashes.SHA384 | hashes.SHA256 | hashes.SHA512):
            break
        try:
            key_of(candidate).verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
        except InvalidSignature:
            continue
        return candidate
    raise BadSignature(f"OCSP response on {name!r} is not signed by the certificate's issuer, or for it")


def _is_appointed(candidate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        usage = candidate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        elliptic = isinstance(candidate.public_key(), ec.EllipticCurvePublicKey)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
    return elliptic and ExtendedKeyUsageOID.OCSP_SIGNING in usage and is_issued_by(candidate, issuer)

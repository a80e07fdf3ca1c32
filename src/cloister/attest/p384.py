"""Certificate chains and signatures of the vendors that use P-384 with SHA-384 throughout: AWS and NVIDIA.

A chain runs leaf, authorities, root. Signatures, names and constraints do not depend on the time and are
cached by the certificates' bytes and the trusted roots; dates are checked against ``now`` at each use.

Source: RFC 5280, sections 4.2.1.3 (key usage), 4.2.1.9 (basic constraints) and 6.1 (path validation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from cloister.attest.der import check_signature_form
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import BadSignature, EndorsementMismatch, MalformedInput, StaleEvidence, UntrustedRoot

Extension = TypeVar("Extension", bound=x509.ExtensionType)
SIGNATURE_BYTES = 96
MAX_CERTIFICATES = 8
# Not extended key usage: who may sign OCSP responses, say, may not sign evidence or manifests.
_UNDERSTOOD = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain whose signatures and constraints hold, up to a trusted root."""

    certificates: tuple[x509.Certificate, ...]
    """Leaf first, the root last."""

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that the chain is about."""
        return self.certificates[0]

    @property
    def root(self) -> x509.Certificate:
        """The trusted root, as the chain brings it."""
        return self.certificates[-1]

    def check_dates(self, now: datetime) -> None:
        """Establish that every certificate, the root included, is valid at ``now``.

        Raises:
            StaleEvidence: one has expired, or is not valid yet.
        """
        for certificate in self.certificates:
            check_dates(certificate, now)


@lru_cache(maxsize=128)
def open_chain(
    ders: tuple[bytes, ...], roots: tuple[x509.Certificate, ...], what: str, fewest: int = 2
) -> Chain:
    """The chain in ``ders`` (leaf first), verified up to one of ``roots``; says nothing of dates.

    1. Each certificate is X.509 with a P-384 key, signed with SHA-384, and has no unknown critical extension.
    2. The last one has the key of a trusted root, or is signed by one.
    3. Each is signed by the next; the root by itself.
    4. Every authority may sign certificates, at this distance from the leaf; the leaf is none.

    Raises:
        MalformedInput: a certificate cannot be read, or the chain has too few or too many.
        UntrustedRoot, BadSignature, EndorsementMismatch: a later step fails.
    """
    if not fewest <= len(ders) <= MAX_CERTIFICATES:
        raise MalformedInput(f"{what} has {len(ders)} certificates, expected {fewest} to {MAX_CERTIFICATES}")
    certificates = [parse_certificate(der, what) for der in ders]
    _end_in_root(certificates, roots, what)
    for certificate, issuer in zip(certificates, [*certificates[1:], certificates[-1]], strict=True):
        if not is_issued_by(certificate, issuer):
            raise BadSignature(
                f"{what}: {common_name(certificate)!r} is not signed by {common_name(issuer)!r}"
            )
    for distance, authority in enumerate(certificates[1:]):
        _expect_authority(authority, distance, what)
    _expect_leaf(certificates[0], what)
    return Chain(tuple(certificates))


def parse_certificate(der: bytes, what: str) -> x509.Certificate:
    """A certificate with a P-384 key, read completely.

    Raises:
        MalformedInput: it cannot be read, or has another kind of key or signature.
    """
    check_signature_form(der, f"certificate of {what}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        _ = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        algorithm = certificate.signature_hash_algorithm
        unknown = [
            extension.oid.dotted_string
            for extension in certificate.extensions
            if extension.critical and extension.oid not in _UNDERSTOOD
        ]
    except UNREADABLE as error:
        raise MalformedInput(f"{what} has a certificate that cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise MalformedInput(f"{what} has a key that is not P-384")
    if not isinstance(algorithm, hashes.SHA384):
        raise MalformedInput(f"{what} has a certificate that is not signed with SHA-384")
    if unknown:
        raise MalformedInput(f"{what} has a critical extension {unknown[0]} that is not known here")
    return certificate


def split_pem(pem: bytes, what: str) -> tuple[bytes, ...]:
    """The certificates in PEM text, as DER.

    Raises:
        MalformedInput: not PEM of certificates.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise MalformedInput(f"{what} is not a chain of certificates in PEM") from error
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def verify_raw(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, what: str) -> None:
    """Establish that ``key`` signed ``message``: r and s, 48 big-endian bytes each, over SHA-384.

    Raises:
        MalformedInput: a signature that does not have 96 bytes.
        BadSignature: it does not verify.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise MalformedInput(f"signature of {what} has {len(signature)} bytes, expected {SIGNATURE_BYTES}")
    encoded = encode_dss_signature(
        int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    )
    try:
        key.verify(encoded, message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise BadSignature(f"signature of {what} does not verify") from error


def key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key of a certificate that ``parse_certificate`` has read."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise MalformedInput("certificate has a key that is not P-384")
    return key


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer``'s key signed ``certificate`` and their names agree."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def check_dates(certificate: x509.Certificate, now: datetime) -> None:
    """Establish that a certificate is valid at ``now``.

    Raises:
        StaleEvidence: it has expired, or is not valid yet.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        problem = f"is not valid before {begin}" if now < begin else f"expired at {end}"
        raise StaleEvidence(f"certificate {common_name(certificate)!r} {problem}, it is {now}")


def spki(certificate: x509.Certificate) -> bytes:
    """DER of the SubjectPublicKeyInfo."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(certificate: x509.Certificate) -> str:
    """What a vendor's root is pinned by: SHA-256 of its SubjectPublicKeyInfo, hexadecimal."""
    return hashlib.sha256(spki(certificate)).hexdigest()


def common_name(certificate: x509.Certificate) -> str:
    """The subject's one common name; empty if it has none or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _end_in_root(certificates: list[x509.Certificate], roots: Sequence[x509.Certificate], what: str) -> None:
    last = certificates[-1]
    if any(spki(root) == spki(last) for root in roots):
        return
    for root in roots:
        if is_issued_by(last, root):
            certificates.append(parse_certificate(root.public_bytes(Encoding.DER), what))
            return
    raise UntrustedRoot(
        f"{what} does not end in a trusted root: it ends in {last.subject.rfc4514_string()!r},"
        f" which none of {len(roots)} trusted keys signed",
        hint="a simulated platform's root must be trusted explicitly",
    )


def _expect_authority(certificate: x509.Certificate, distance: int, what: str) -> None:
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        raise EndorsementMismatch(f"{what}: {common_name(certificate)!r} may not sign certificates")
    if constraints.path_length is not None and constraints.path_length < distance:
        raise EndorsementMismatch(
            f"{what}: {common_name(certificate)!r} may have {constraints.path_length} authorities"
            f" below it, found {distance}"
        )


def _expect_leaf(certificate: x509.Certificate, what: str) -> None:
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if constraints is not None and (constraints.ca or constraints.path_length is not None):
        raise EndorsementMismatch(f"{what} begins with an authority, {common_name(certificate)!r}")
    if usage is None or not usage.digital_signature:
        raise EndorsementMismatch(f"{what}: {common_name(certificate)!r} may not sign evidence")


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None

"""The certificate of an attestation key, and its chain to a vendor's root.

Two things that real vTPMs do are allowed for: zero bytes after the certificate (Azure hands out the whole of
the NV index that it lies in, 4,096 bytes), and chains in any order, with the root or without their issuer.

Source: RFC 5280, section 6.1; TCG EK Credential Profile 2.5, section 3.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.dcap.chain import common_name
from cloister.attest.dcap.collateral import certificate_window, check_validity
from cloister.attest.dcap.roots import is_issued_by
from cloister.attest.der import check_signature_form
from cloister.attest.tpm.keys import AttestationKey, accept_key
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import BadSignature, EndorsementMismatch, MalformedInput, UntrustedRoot

MAX_CERTIFICATES = 8
MAX_CERTIFICATE_BYTES = 8192
MAX_PEM_BYTES = 64 * 1024
_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")


def split_pem(text: bytes) -> tuple[bytes, ...]:
    """The contents of the certificates in PEM text; they may still carry trailing zero bytes.

    Text around them is left alone, as RFC 7468 (section 2) wants it.

    Raises:
        MalformedInput: no certificate, too many, or something else that is encoded.
    """
    if len(text) > MAX_PEM_BYTES:
        raise MalformedInput(f"certificates of {len(text)} bytes, at most {MAX_PEM_BYTES} are read")
    blocks = _PEM_BLOCK.findall(text)
    if not 0 < len(blocks) <= MAX_CERTIFICATES or len(blocks) != text.count(b"-----BEGIN "):
        raise MalformedInput(f"not a PEM chain of 1 to {MAX_CERTIFICATES} certificates")
    try:
        return tuple(b64decode(b"".join(block.split()), validate=True) for block in blocks)
    except Base64Error as error:
        raise MalformedInput("certificate in PEM is not base64") from error


def cut_certificate(raw: bytes) -> bytes:
    """The DER certificate at the beginning of ``raw``; only zero bytes may follow it.

    Raises:
        MalformedInput: not a DER sequence, or followed by something else.
    """
    if len(raw) > MAX_CERTIFICATE_BYTES:
        raise MalformedInput(f"certificate has {len(raw)} bytes, at most {MAX_CERTIFICATE_BYTES} are read")
    if raw[:2] != b"\x30\x82" or len(raw) < 4:
        raise MalformedInput("certificate is not a DER sequence of a certificate's size")
    end = 4 + int.from_bytes(raw[2:4], "big")
    if end > len(raw) or raw[end:].strip(b"\x00"):
        raise MalformedInput(f"certificate of {end} bytes in {len(raw)} that are not zero after it")
    return raw[:end]


@lru_cache(maxsize=256)
def load_certificate(der: bytes) -> x509.Certificate:
    """A certificate, read completely.

    Raises:
        MalformedInput: a part of it cannot be read.
    """
    check_signature_form(der, "certificate of the attestation key's chain")
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = (
            certificate.public_key(),
            certificate.extensions,
            certificate.subject.rfc4514_string(),
            certificate.issuer.rfc4514_string(),
            certificate.not_valid_after_utc,
            certificate.not_valid_before_utc,
        )
    except UNREADABLE as error:
        raise MalformedInput("certificate of the attestation key's chain cannot be read") from error
    if certificate.public_bytes(Encoding.DER) != der:
        raise MalformedInput("certificate of the attestation key's chain is not canonical DER")
    return certificate


def load_chain(raw: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    """Certificates in DER, each possibly with trailing zero bytes."""
    return tuple(load_certificate(cut_certificate(part)) for part in raw)


def key_of(certificate: x509.Certificate) -> AttestationKey:
    """The key of an attestation key's certificate; MalformedInput if no quote may be signed with it."""
    return accept_key(certificate.public_key())


def verify_chain(
    certificates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime
) -> x509.Certificate:
    """Establish that the first certificate leads to one of ``roots`` through the others; return that root.

    Raises:
        UntrustedRoot: it leads to none of them.
        BadSignature: a certificate on the way is not signed by the issuer that it names.
        StaleEvidence: a certificate on the way is not valid at ``now``.
        EndorsementMismatch: the first certificate is not one for signing.
    """
    leaf, *others = certificates
    _check_leaf(leaf)
    current, path = leaf, [leaf]
    while len(path) <= MAX_CERTIFICATES:
        root = next((root for root in roots if _issued(current, root)), None)
        if root is not None:
            check_validity(tuple(certificate_window(certificate) for certificate in path), now)
            return root
        issuers = [other for other in others if other not in path and _issued(current, other)]
        issuers = [issuer for issuer in issuers if _is_authority(issuer)]
        if not issuers:
            break
        # A renewed issuer has the same name and key: take the one that is valid, if there is one.
        current = next((issuer for issuer in issuers if _valid(issuer, now)), issuers[0])
        path.append(current)
    if _named_issuers(current, (*others, *roots)):
        raise BadSignature(
            f"certificate {common_name(current)!r} is not signed by the issuer that it names,"
            f" {current.issuer.rfc4514_string()!r}"
        )
    raise UntrustedRoot(
        f"attestation key's certificate chain does not end in a trusted root: its issuer is"
        f" {current.issuer.rfc4514_string()!r}"
    )


def has_issuer(certificate: x509.Certificate, others: Sequence[x509.Certificate]) -> bool:
    """Whether one of ``others`` is the issuer of ``certificate`` by its name; no signature is checked."""
    return bool(_named_issuers(certificate, others))


def _named_issuers(
    certificate: x509.Certificate, others: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    return [other for other in others if other.subject == certificate.issuer]


@lru_cache(maxsize=512)
def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    return is_issued_by(certificate, issuer)


def _valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _check_leaf(certificate: x509.Certificate) -> None:
    usage = next((e.value for e in certificate.extensions if isinstance(e.value, x509.KeyUsage)), None)
    if _is_authority(certificate) or (usage is not None and not usage.digital_signature):
        raise EndorsementMismatch(f"certificate {common_name(certificate)!r} is not of an attestation key")


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = (e.value for e in certificate.extensions if isinstance(e.value, x509.BasicConstraints))
    return any(value.ca for value in constraints)

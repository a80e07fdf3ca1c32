"""The names in a client certificate that TLS has verified: who its bearer is, in one form for everybody.

A name has its kind before it, so that one kind cannot be taken for another: ``uri:spiffe://example.org/job``,
``email:``, ``dns:``, ``subject:CN=Alice,O=Example`` (RFC 4514), ``fingerprint:`` (SHA-256 of the DER).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cloister.crypto.certificates import UNREADABLE
from cloister.errors import MalformedInput, StaleEvidence

NAMES = ("uri", "email", "dns", "subject", "fingerprint")
"""Kinds of names; the first that a certificate has is what it is called."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a certificate says of its bearer."""

    names: tuple[str, ...]
    """Every name, in the order of ``NAMES``; the fingerprint is always there, and last."""
    not_before: datetime
    not_after: datetime

    @property
    def name(self) -> str:
        """What its bearer is called."""
        return self.names[0]

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the DER."""
        return bytes.fromhex(self.names[-1].partition(":")[2])

    def check_time(self, now: datetime) -> None:
        """TLS looked when the connection began; a connection may outlive the certificate.

        Raises:
            StaleEvidence: expired, or not valid yet.
        """
        if not self.not_before <= now <= self.not_after:
            raise StaleEvidence("the client certificate has expired or is not valid yet")


@functools.lru_cache(maxsize=1024)
def read_client_certificate(der: bytes) -> ClientCertificate:
    """The names and times of a certificate; nothing about whether it may be believed.

    Raises:
        MalformedInput: it cannot be read.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = tuple(_names(certificate))
        return ClientCertificate(names, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    except UNREADABLE as error:
        raise MalformedInput("the client certificate cannot be read") from error


def _names(certificate: x509.Certificate) -> Iterator[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        yield from (f"uri:{name}" for name in found.get_values_for_type(x509.UniformResourceIdentifier))
        yield from (f"email:{name}" for name in found.get_values_for_type(x509.RFC822Name))
        yield from (f"dns:{name}" for name in found.get_values_for_type(x509.DNSName))
    if subject := certificate.subject.rfc4514_string():
        yield f"subject:{subject}"
    yield f"fingerprint:{certificate.fingerprint(hashes.SHA256()).hex()}"

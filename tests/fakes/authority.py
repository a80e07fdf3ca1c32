"""A certificate authority of a site, and client certificates by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


@dataclass
class Authority:
    """A certificate authority of a site."""

    name: str = "Site authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def certificate(self) -> x509.Certificate:
        """Its own certificate."""
        return self._sign(
            self.key, self._name(self.name), [x509.BasicConstraints(True, None)], -DAY, 365 * DAY
        )

    @property
    def pem(self) -> bytes:
        """The same as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        common_name: str = "somebody",
        *names: x509.GeneralName,
        begin: timedelta = -DAY,
        end: timedelta = DAY,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ) -> str:
        """PEM of a new client certificate and its key; times are from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        extensions: list[Any] = [x509.BasicConstraints(False, None), x509.ExtendedKeyUsage([usage])]
        if names:
            extensions.append(x509.SubjectAlternativeName(names))
        made = self._sign(key, self._name(common_name), extensions, begin, end)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return (made.public_bytes(Encoding.PEM) + private).decode()

    def _sign(
        self, key: Any, subject: x509.Name, extensions: list[Any], begin: timedelta, end: timedelta
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name(self.name), subject, key.public_key(), 7)
        builder = builder.not_valid_before(now + begin).not_valid_after(now + end)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    @staticmethod
    def _name(common_name: str) -> x509.Name:
        parts = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
        return x509.Name(parts)

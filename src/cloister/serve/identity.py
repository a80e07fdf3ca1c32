"""The keys that a protected server makes at each start and proves in its evidence.

They exist in memory only.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from cloister.crypto.hpke import Kem
from cloister.ohttp.gateway import Gateway
from cloister.serve.tls import TlsKeys

VALIDITY = timedelta(days=365)
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class TlsPair:
    """PEM of a private key and of the certificate chain for it, for libraries that take nothing else."""

    key: bytes = field(repr=False)
    chain: bytes


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """TLS key (inside ``tls``) and OHTTP key of one run of the server."""

    tls: TlsKeys
    tls_spki: bytes
    """SubjectPublicKeyInfo (DER): what callers pin after they have verified evidence over it."""
    gateway: Gateway
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    """The key inside ``tls``."""
    certificate: x509.Certificate = field(repr=False)

    def pem_pair(self) -> TlsPair:
        """The TLS key and its certificate for gRPC, which does not take an SSL context."""
        return TlsPair(
            key=self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            chain=self.certificate.public_bytes(Encoding.PEM),
        )


OHTTP_KEMS = {
    "x25519": Kem.X25519_HKDF_SHA256,
    "p-256": Kem.P256_HKDF_SHA256,
    "mlkem768-x25519": Kem.MLKEM768_X25519,
}
"""Kinds of OHTTP key, as the settings name them."""


def make_keys(host: str, now: datetime | None = None, *, kem: Kem = Kem.X25519_HKDF_SHA256) -> ServerKeys:
    """New keys, with a self-signed certificate for ``host``.

    Nobody is meant to trust the certificate for its issuer: its key counts, and evidence speaks of that.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_sign(key, host, now or datetime.now(UTC))
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return ServerKeys(_tls_keys(key, certificate), spki, Gateway.generate(kem), key, certificate)


def _self_sign(key: ec.EllipticCurvePrivateKey, host: str, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloister")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _alternative_names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    try:
        extra: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        extra = x509.DNSName(host)
    return names if extra in names else [*names, extra]


def _tls_keys(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> TlsKeys:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return TlsKeys(pem + certificate.public_bytes(Encoding.PEM), minimum="TLSv1_3")

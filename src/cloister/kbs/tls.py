"""The broker's TLS certificate: self-signed, made on first start, given to clients as the one they trust."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.crypto.certificates import UNREADABLE
from cloister.errors import ConfigError
from cloister.kbs.owner_files import write_new

LIFETIME = timedelta(days=3650)
_BACKDATE = timedelta(hours=1)


def ensure_certificate(
    path: Path, key: ec.EllipticCurvePrivateKey, host: str, now: datetime, *, names: Sequence[str] = ()
) -> None:
    """Make the certificate if there is none, and refuse to start with one that clients would refuse.

    Args:
        names: which clients reach it by, besides ``host``.
    Raises:
        ConfigError: expired, not yet valid, unreadable, for another key, or without one of ``names``.
    """
    if not path.exists():
        certificate = make_certificate(key, host, now, names=names)
        write_new(path, certificate.public_bytes(Encoding.PEM), mode=0o644)
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(f"{path} does not hold a certificate") from error
    hint = f"delete {path} to have a new one made, and give it to the clients"
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ConfigError(f"{path} is valid only until {certificate.not_valid_after_utc:%Y-%m-%d}", hint=hint)
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"{path} is for another key than the one beside it", hint=hint)
    borne = _borne(certificate)
    if missing := [name for name in _names(names) if name not in borne]:
        raise ConfigError(f"{path} does not bear the name {missing[0].value}", hint=hint)


def make_certificate(
    key: ec.EllipticCurvePrivateKey, host: str, now: datetime, *, names: Sequence[str] = ()
) -> x509.Certificate:
    """A self-signed server certificate for loopback, this machine's name, ``host`` and ``names``.

    It is no certificate authority: whoever trusts it trusts this one server and nothing that its key signs.
    """
    every = ("127.0.0.1", "::1", "localhost", socket.gethostname(), host, *names)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Cloister key broker")])
    public = key.public_key()
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(_names(every)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _names(candidates: Sequence[str]) -> list[x509.GeneralName]:
    names: dict[str, x509.GeneralName] = {}
    for candidate in candidates:
        try:
            names[candidate] = x509.IPAddress(ipaddress.ip_address(candidate))
        except ValueError:
            if candidate.isascii() and candidate:
                names[candidate] = x509.DNSName(candidate)
    return list(names.values())


def _borne(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []

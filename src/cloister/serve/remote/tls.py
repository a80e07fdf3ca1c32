"""TLS between a frontend and worker hosts: each side has a key of its own, made at start and kept in memory.

Python's ``ssl`` asks for a peer's certificate only where it also checks its issuer. So every certificate
here has the same issuer, whose private key is no secret: 32 zero bytes. That issuer proves nothing, and is
meant to. TLS proves that the peer holds its certificate's key; evidence or token (``proof``) speak of that
key. Nobody is let in for a certificate.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from cloister.crypto.certificates import UNREADABLE
from cloister.errors import MalformedInput, TransportError

JOIN = "cloister-join/1"
"""ALPN name of the connection on which a host joins; it lives as long as the host is joined."""
DATA = "cloister-frames/1"
"""ALPN name of a connection that carries the frames of one worker."""
_BACKDATE = timedelta(days=1)
_VALIDITY = timedelta(days=3650)
_ISSUER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anybody: this issuer proves nothing")])


@dataclass(frozen=True, slots=True)
class LinkKey:
    """This process's key for links, as the contexts that use it."""

    spki: bytes
    """SubjectPublicKeyInfo (DER)."""
    server: ssl.SSLContext
    join: ssl.SSLContext
    data: ssl.SSLContext


def make_link_key(now: datetime | None = None) -> LinkKey:
    """A new key. The certificate's dates count for nothing, so they leave room for clocks that differ."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = _certificate(key, now or datetime.now(UTC)).public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    server = _context(ssl.PROTOCOL_TLS_SERVER, pem, [JOIN, DATA])
    # A resumed session would skip the proof that the peer holds its key.
    server.num_tickets = 0
    join, data = (_context(ssl.PROTOCOL_TLS_CLIENT, pem, [name]) for name in (JOIN, DATA))
    return LinkKey(spki, server, join, data)


def peer_spki(session: ssl.SSLObject | None) -> bytes:
    """The key that the other side of an established connection proved to hold.

    Raises:
        TransportError: it showed none.
        MalformedInput: its certificate cannot be read.
    """
    raw = None if session is None else session.getpeercert(True)
    if not raw:
        raise TransportError("the other side showed no certificate")
    try:
        key = x509.load_der_x509_certificate(raw).public_key()
    except UNREADABLE as error:
        raise MalformedInput("the other side's certificate cannot be read") from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _anybody() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))


def _certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloister")])
    return (
        _dated(now)
        .subject_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_anybody().public_key()), critical=False
        )
        .sign(_anybody(), None)
    )


def _issuer(now: datetime) -> x509.Certificate:
    public = _anybody().public_key()
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
    return (
        _dated(now)
        .subject_name(_ISSUER)
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(_anybody(), None)
    )


def _dated(now: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(_ISSUER)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _VALIDITY)
    )


def _context(protocol: int, pem: bytes, names: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(names)
    issuer = _issuer(datetime.now(UTC)).public_bytes(Encoding.DER)
    context.load_verify_locations(cadata=issuer)
    descriptor = os.memfd_create("cloister-link", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        os.pwrite(descriptor, bytes(len(pem)), 0)
    finally:
        os.close(descriptor)
    return context

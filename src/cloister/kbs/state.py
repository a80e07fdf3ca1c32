"""The broker's state folder, mode 0700: everything in it is made on first start.

============ ==== ===================================================================================
file         mode content
============ ==== ===================================================================================
kek          0600 32 bytes: the key-encrypting key, unless ``keys.kek`` names another provider
kbs.sqlite   0600 database (SQLite, WAL), unless ``keys.database`` names another one
tls.key      0600 P-256 key of the HTTPS server
tls.pem      0644 its certificate: what clients trust
token.key    0600 P-256 key that signs attestation results
session.key  0600 32 bytes: encrypts the sessions of brokers that share a database
admin.key    0600 Ed25519 key that admin tokens are checked against
admin.token  0600 bearer token for administration, unless ``keys.admin_tokens`` is off
audit.key    0600 Ed25519 key that signs the head of the audit log
audit.pub    0644 its public half (PEM): for auditors
============ ==== ===================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError
from cloister.kbs.admin import ensure_admin_token
from cloister.kbs.administration import Administration
from cloister.kbs.audit import begin_log
from cloister.kbs.database import Database, database_url
from cloister.kbs.journal import Journal
from cloister.kbs.kek import KekRing, open_ring
from cloister.kbs.owner_files import (
    load_or_make_ed25519,
    load_or_make_p256,
    load_or_make_secret,
    make_folder,
    write_new,
)
from cloister.kbs.tls import ensure_certificate
from cloister.settings import KeysSettings


@dataclass(frozen=True, slots=True)
class BrokerState:
    """What a running broker holds open."""

    folder: Path
    database: Database
    kek: KekRing
    token_key: ec.EllipticCurvePrivateKey
    admin_key: ed25519.Ed25519PrivateKey
    audit_key: ed25519.Ed25519PrivateKey
    session_key: SecretKey
    journal: Journal

    @property
    def certificate(self) -> Path:
        """The certificate that clients trust."""
        return self.folder / "tls.pem"

    def administration(self) -> Administration:
        """What the owner may do to this broker."""
        return Administration(self.database, self.kek, self.audit_key)

    def close(self) -> None:
        """Write what waits for the audit log, and close the database."""
        self.journal.close()
        self.database.close()


def open_state(settings: KeysSettings, now: datetime) -> BrokerState:
    """Open the state folder; make what is missing.

    Raises:
        ConfigError: a file can be read by others, is damaged, or cannot be written.
        AuditBroken: the database has audit entries but no head.
    """
    folder = Path(settings.folder)
    make_folder(folder)
    tls_key = load_or_make_p256(folder / "tls.key")
    ensure_certificate(folder / "tls.pem", tls_key, settings.host, now, names=settings.names)
    admin_key = load_or_make_ed25519(folder / "admin.key")
    if settings.admin_tokens:
        ensure_admin_token(folder / "admin.token", admin_key, now)
    audit_key = load_or_make_ed25519(folder / "audit.key")
    public = audit_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_new(folder / "audit.pub", public, mode=0o644)
    kek = open_ring(settings.kek or f"file:{folder / 'kek'}", settings.previous_keks)
    url = database_url(settings)
    if not settings.database:
        _make_owner_only(folder / "kbs.sqlite")
    database = Database(url)
    with database.write() as session:
        begin_log(session, audit_key)
    token_key = load_or_make_p256(folder / "token.key")
    session_key = load_or_make_secret(folder / "session.key")
    journal = Journal(database, audit_key)
    return BrokerState(folder, database, kek, token_key, admin_key, audit_key, session_key, journal)


@contextmanager
def open_administration(settings: KeysSettings) -> Iterator[Administration]:
    """Administration of a broker of this machine, running or not; makes nothing.

    Raises:
        ConfigError: no broker has been started there, or a file cannot be used.
    """
    folder = Path(settings.folder)
    here = settings.database or (folder / "kbs.sqlite").is_file()
    if not here or not (folder / "audit.key").is_file():
        raise ConfigError(f"no key broker has been started in {folder}")
    audit_key = load_or_make_ed25519(folder / "audit.key")
    kek = open_ring(settings.kek or f"file:{folder / 'kek'}", settings.previous_keks, make=False)
    database = Database(database_url(settings))
    try:
        yield Administration(database, kek, audit_key)
    finally:
        database.close()


def _make_owner_only(path: Path) -> None:
    # SQLite gives its journal files the rights of the database, so these are set before it is opened.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))

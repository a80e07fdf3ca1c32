"""Sessions that every broker on one database knows: whichever answers can go on where another one began.

The session id that a challenge sets as cookie is the session itself: TEE, nonce and end, encrypted under a
key that the brokers share (``session.key``). So a flood of challenges costs no memory. A nonce is used up by
the row that is written when evidence comes in; an attested session is the same row with the TEE's key and
claims, encrypted and bound to the session's id: whoever can write the database cannot make a session in it.

=============== ==================================================================================
session id      base64url of nonce (12), ciphertext, tag (16), AES-256-GCM; additional data:
                ``cloister-challenge``; plaintext: JSON of ``Challenged``
row id          SHA-256 of the session id, hexadecimal, or of ``token`` NUL and a token
row state       empty, or nonce (12), ciphertext, tag (16), AES-256-GCM; additional data:
                ``cloister-session`` NUL row id; plaintext: JSON of ``Stored``
=============== ==================================================================================
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import secrets
import threading
from datetime import datetime, timedelta
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, select, text, update

from cloister.crypto.jwe import TeePublicKey
from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext
from cloister.kbs.database import Database
from cloister.kbs.protocol import HASH_ALGORITHM, NONCE_BYTES
from cloister.kbs.records import SessionRow
from cloister.kbs.sessions import AttestedTee, Waiting

MAX_ID_CHARACTERS = 512
_GCM_NONCE_BYTES = 12
_CHALLENGE = b"cloister-challenge"
_PURGE_EVERY = timedelta(seconds=60)


class Challenged(msgspec.Struct, frozen=True):
    """A session before its evidence."""

    tee: str
    nonce: str
    expires: float
    hash_algorithm: str = HASH_ALGORITHM


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A session after it."""

    tee: str
    jwk: dict[str, str]
    context: dict[str, Any]
    evidence_digest: str
    init_data: dict[str, str] = {}


class SharedSessions:
    """As ``SessionTable``, for several brokers; safe to use from many threads."""

    def __init__(self, database: Database, key: SecretKey, ttl_s: float) -> None:
        self._database = database
        self._key = AESGCM(key.raw)
        self._ttl = timedelta(seconds=ttl_s)
        self._lock = threading.Lock()
        self._purge_at: datetime | None = None

    def open(self, tee: str, now: datetime, hash_algorithm: str = HASH_ALGORITHM) -> tuple[str, str]:
        """Begin a session; returns its id and nonce."""
        nonce = base64.b64encode(secrets.token_bytes(NONCE_BYTES)).decode("ascii")
        challenged = Challenged(tee, nonce, (now + self._ttl).timestamp(), hash_algorithm)
        sealed = self._seal(msgspec.json.encode(challenged), _CHALLENGE)
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii"), nonce

    def take_nonce(self, session_id: str, now: datetime) -> Waiting | None:
        """The challenge of a session that has not attested yet; the session is used up by this."""
        try:
            challenged = msgspec.json.decode(self._unseal(_decoded(session_id), _CHALLENGE), type=Challenged)
        except (BadCiphertext, msgspec.DecodeError):
            return None
        if challenged.expires <= now.timestamp():
            return None
        with self._database.write_connection() as connection:
            self._purge(connection, now)
            row = {"id": _row_id(session_id), "expires": math.ceil(challenged.expires), "state": b""}
            if connection.execute(_TAKE, row).rowcount != 1:
                return None
        return Waiting(challenged.tee, challenged.nonce, challenged.hash_algorithm)

    def attest(self, session_id: str, attested: AttestedTee, now: datetime) -> None:
        """Record that the session's attestation succeeded."""
        row_id = _row_id(session_id)
        stored = Stored(
            tee=attested.tee,
            jwk=attested.key.jwk,
            context=attested.context,
            evidence_digest=attested.evidence_digest,
            init_data=attested.init_data,
        )
        state = self._seal(msgspec.json.encode(stored), _session(row_id))
        expires = math.ceil((now + self._ttl).timestamp())
        change = update(SessionRow).where(SessionRow.id == row_id).values(expires=expires, state=state)
        with self._database.write_connection() as connection:
            connection.execute(change)

    def attested(self, session_id: str, now: datetime) -> AttestedTee | None:
        """The TEE behind a session, if it attested and the session has not expired."""
        state = self._state(_row_id(session_id), now)
        if state is None:
            return None
        stored = msgspec.json.decode(state, type=Stored)
        return AttestedTee(
            tee=stored.tee,
            key=TeePublicKey.from_jwk(stored.jwk),
            context=stored.context,
            evidence_digest=stored.evidence_digest,
            init_data=stored.init_data,
        )

    def remember_token(self, token: str, evidence_digest: str, now: datetime) -> None:
        """Note on which evidence a token was issued; the token itself is not kept."""
        row_id = _token_id(token)
        state = self._seal(evidence_digest.encode("ascii"), _session(row_id))
        row = {"id": row_id, "expires": math.ceil((now + self._ttl).timestamp()), "state": state}
        with self._database.write_connection() as connection:
            connection.execute(_TAKE, row)

    def evidence_of(self, token: str, now: datetime) -> str:
        """Digest of the evidence behind a token; empty where that is not known any more."""
        state = self._state(_token_id(token), now)
        return "" if state is None else state.decode("ascii")

    def _state(self, row_id: str, now: datetime) -> bytes | None:
        query = select(SessionRow.state, SessionRow.expires).where(SessionRow.id == row_id)
        with self._database.read_connection() as connection:
            row = connection.execute(query).first()
        if row is None or not row.state or row.expires <= now.timestamp():
            return None
        try:
            return self._unseal(row.state, _session(row_id))
        except BadCiphertext:
            return None

    def _purge(self, connection: Any, now: datetime) -> None:
        with self._lock:
            if self._purge_at is not None and now < self._purge_at:
                return
            self._purge_at = now + _PURGE_EVERY
        connection.execute(delete(SessionRow).where(SessionRow.expires <= int(now.timestamp())))

    def _seal(self, data: bytes, context: bytes) -> bytes:
        nonce = secrets.token_bytes(_GCM_NONCE_BYTES)
        return nonce + self._key.encrypt(nonce, data, context)

    def _unseal(self, sealed: bytes, context: bytes) -> bytes:
        try:
            return self._key.decrypt(sealed[:_GCM_NONCE_BYTES], sealed[_GCM_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise BadCiphertext("not a session of these brokers") from error


_TAKE = text(
    "INSERT INTO sessions (id, expires, state) VALUES (:id, :expires, :state) ON CONFLICT (id) DO NOTHING"
)


def _decoded(session_id: str) -> bytes:
    try:
        if len(session_id) > MAX_ID_CHARACTERS:
            raise ValueError("too long")
        raw = base64.b64decode(session_id + "=" * (-len(session_id) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadCiphertext("not a session of these brokers") from error
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != session_id.encode():
        raise BadCiphertext("not a session of these brokers")  # another spelling would be another row
    return raw


def _row_id(session_id: str) -> str:
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()


def _token_id(token: str) -> str:
    return hashlib.sha256(b"token\0" + token.encode("utf-8", "surrogatepass")).hexdigest()


def _session(row_id: str) -> bytes:
    return b"cloister-session\0" + row_id.encode("ascii")

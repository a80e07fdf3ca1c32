"""Sessions between challenge and release: in memory, short-lived, bounded in number.

A nonce is good for one attestation, successful or not. A session ends ``ttl_s`` after the challenge, and
begins anew for ``ttl_s`` when the attestation succeeds. When the table is full the oldest session that never
attested makes room, so a flood of challenges cannot push out the TEEs that did.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from cloister.crypto.jwe import TeePublicKey
from cloister.kbs.protocol import HASH_ALGORITHM, NONCE_BYTES

MAX_SESSIONS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedTee:
    """What the broker believes of a TEE after its evidence was verified and appraised."""

    tee: str
    key: TeePublicKey
    context: dict[str, Any]
    """The claims that policies see."""
    evidence_digest: str
    init_data: dict[str, str] = field(default_factory=dict)
    """Entries of the init data that came with the evidence and that the hardware binds."""


class Waiting(NamedTuple):
    """What a session waits for."""

    tee: str
    nonce: str
    hash_algorithm: str = HASH_ALGORITHM
    """By which the evidence binds nonce and key."""


@dataclass(slots=True)
class Session:
    """One run of the protocol."""

    session_id: str
    tee: str
    expires: datetime
    nonce: str | None
    """None once it was used."""
    hash_algorithm: str = HASH_ALGORITHM
    attested: AttestedTee | None = None


class Sessions(Protocol):
    """Where sessions are: a ``SessionTable``, or ``SharedSessions`` of several brokers."""

    def open(self, tee: str, now: datetime, hash_algorithm: str = HASH_ALGORITHM) -> tuple[str, str]:
        """Begin a session; returns its id and nonce."""
        ...

    def take_nonce(self, session_id: str, now: datetime) -> Waiting | None:
        """The challenge of a session that has not attested yet; the session is used up by this."""
        ...

    def attest(self, session_id: str, attested: AttestedTee, now: datetime) -> None:
        """Record that the session's attestation succeeded."""
        ...

    def attested(self, session_id: str, now: datetime) -> AttestedTee | None:
        """The TEE behind a session, if it attested and the session has not expired."""
        ...

    def remember_token(self, token: str, evidence_digest: str, now: datetime) -> None:
        """Note on which evidence a token was issued; the token itself is not kept."""
        ...

    def evidence_of(self, token: str, now: datetime) -> str:
        """Digest of the evidence behind a token; empty where that is not known."""
        ...


class SessionTable:
    """All sessions of one broker; safe to use from many threads."""

    def __init__(self, ttl_s: float, *, limit: int = MAX_SESSIONS) -> None:
        self._ttl = timedelta(seconds=ttl_s)
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Session] = OrderedDict()
        self._attested: OrderedDict[str, Session] = OrderedDict()
        self._evidence: OrderedDict[bytes, str] = OrderedDict()

    def open(self, tee: str, now: datetime, hash_algorithm: str = HASH_ALGORITHM) -> tuple[str, str]:
        """Begin a session; returns its id and nonce."""
        nonce = base64.b64encode(secrets.token_bytes(NONCE_BYTES)).decode("ascii")
        session = Session(secrets.token_urlsafe(32), tee, now + self._ttl, nonce, hash_algorithm)
        with self._lock:
            self._drop_expired(now)
            while len(self._waiting) + len(self._attested) >= self._limit:
                (self._waiting or self._attested).popitem(last=False)
            self._waiting[session.session_id] = session
        return session.session_id, nonce

    def take_nonce(self, session_id: str, now: datetime) -> Waiting | None:
        """The challenge of a session that has not attested yet; the session is used up by this."""
        with self._lock:
            session = self._waiting.pop(session_id, None)
        if session is None or session.nonce is None or session.expires <= now:
            return None
        return Waiting(session.tee, session.nonce, session.hash_algorithm)

    def attest(self, session_id: str, attested: AttestedTee, now: datetime) -> None:
        """Record that the session's attestation succeeded."""
        with self._lock:
            session = Session(session_id, attested.tee, now + self._ttl, None, attested=attested)
            self._attested[session_id] = session

    def attested(self, session_id: str, now: datetime) -> AttestedTee | None:
        """The TEE behind a session, if it attested and the session has not expired."""
        with self._lock:
            session = self._attested.get(session_id)
        return session.attested if session is not None and session.expires > now else None

    def remember_token(self, token: str, evidence_digest: str, now: datetime) -> None:
        """Note on which evidence a token was issued; the token itself is not kept."""
        with self._lock:
            self._evidence[_digest(token)] = evidence_digest
            while len(self._evidence) > self._limit:
                self._evidence.popitem(last=False)

    def evidence_of(self, token: str, now: datetime) -> str:
        """Digest of the evidence behind a token; empty for one that another process issued."""
        with self._lock:
            return self._evidence.get(_digest(token), "")

    def __len__(self) -> int:
        return len(self._waiting) + len(self._attested)

    def _drop_expired(self, now: datetime) -> None:
        # Both tables are in order of expiry, because every session lives equally long.
        for table in (self._waiting, self._attested):
            while table and next(iter(table.values())).expires <= now:
                table.popitem(last=False)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()

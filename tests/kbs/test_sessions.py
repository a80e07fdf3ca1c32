"""Sessions: one nonce, one use, a bounded table."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest

from cloister.crypto.jwe import TeePrivateKey, TeePublicKey
from cloister.kbs.sessions import AttestedTee, SessionTable

NOW = datetime(2026, 11, 20, tzinfo=UTC)
LATER = NOW + timedelta(seconds=301)


@pytest.fixture(scope="module")
def tee() -> AttestedTee:
    """What attestation found."""
    key = TeePublicKey.from_jwk(TeePrivateKey.generate().public_jwk)
    return AttestedTee(tee="tdx", key=key, context={}, evidence_digest="")


def test_nonce_is_random_and_used_once() -> None:
    """A nonce has 32 bytes, differs from every other, and is good for one attestation."""
    table = SessionTable(300)
    session_id, nonce = table.open("tdx", NOW)
    assert len(base64.b64decode(nonce)) == 32
    assert nonce != table.open("tdx", NOW)[1]
    assert table.take_nonce(session_id, NOW) == ("tdx", nonce, "sha384")
    assert table.take_nonce(session_id, NOW) is None


def test_expired_and_unknown_sessions_are_nothing(tee: AttestedTee) -> None:
    """Time takes both the challenge and the attested session away."""
    table = SessionTable(300)
    session_id, _ = table.open("tdx", NOW)
    assert table.take_nonce(session_id, LATER) is None
    assert table.take_nonce("unknown", NOW) is None
    table.attest("other", tee, NOW)
    assert table.attested("other", NOW) is tee
    assert table.attested("other", LATER) is None
    assert table.attested("unknown", NOW) is None


def test_a_challenge_is_not_an_attestation() -> None:
    """A session that only asked for a nonce is not attested."""
    table = SessionTable(300)
    session_id, _ = table.open("tdx", NOW)
    assert table.attested(session_id, NOW) is None


def test_a_flood_of_challenges_keeps_attested_sessions(tee: AttestedTee) -> None:
    """The table is bounded, and challenges make room before attested TEEs do."""
    table = SessionTable(300, limit=10)
    table.attest("attested", tee, NOW)
    for _ in range(50):
        table.open("tdx", NOW)
    assert len(table) == 10
    assert table.attested("attested", NOW) is tee


def test_expired_sessions_are_dropped(tee: AttestedTee) -> None:
    """Nothing is kept for longer than it lives."""
    table = SessionTable(300)
    table.attest("attested", tee, NOW)
    table.open("tdx", NOW)
    table.open("tdx", LATER)
    assert len(table) == 1

"""Sessions that several brokers share: begun at one, ended at another, and forged by nobody."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from cloister.crypto.jwe import TeePrivateKey, TeePublicKey
from cloister.crypto.keys import SecretKey
from cloister.kbs.database import Database
from cloister.kbs.sessions import AttestedTee
from cloister.kbs.shared_sessions import SharedSessions

NOW = datetime(2026, 11, 20, tzinfo=UTC)
LATER = NOW + timedelta(seconds=302)
Pair = tuple[SharedSessions, SharedSessions, Database]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two brokers' views of one database."""
    database = Database(f"sqlite:///{tmp_path / 'kbs.sqlite'}")
    key = SecretKey.generate()
    yield SharedSessions(database, key, 300), SharedSessions(database, key, 300), database
    database.close()


@pytest.fixture(scope="module")
def tee() -> AttestedTee:
    """What attestation found."""
    key = TeePublicKey.from_jwk(TeePrivateKey.generate().public_jwk)
    context = {"mr_td": "aa", "debug": False, "isv_svn": 3, "advisory_ids": ["x"]}
    return AttestedTee(tee="tdx", key=key, context=context, evidence_digest="ab", init_data={"a": "b"})


def test_a_session_goes_on_at_another_broker(pair: Pair, tee: AttestedTee) -> None:
    """Challenge, evidence and release may each be answered by another broker."""
    one, other, _ = pair
    session_id, nonce = one.open("tdx", NOW)
    assert len(base64.b64decode(nonce)) == 32
    assert other.take_nonce(session_id, NOW) == ("tdx", nonce, "sha384")
    other.attest(session_id, tee, NOW)
    found = one.attested(session_id, NOW)
    assert found is not None
    assert (found.tee, found.context, found.evidence_digest) == ("tdx", tee.context, "ab")
    assert (found.key.jwk, found.init_data) == (tee.key.jwk, {"a": "b"})


def test_a_nonce_is_used_once_among_all_brokers(pair: Pair) -> None:
    """What one broker has taken no other one takes."""
    one, other, _ = pair
    session_id, _ = one.open("tdx", NOW)
    assert other.take_nonce(session_id, NOW) is not None
    assert one.take_nonce(session_id, NOW) is None
    assert other.take_nonce(session_id, NOW) is None


def test_time_ends_sessions(pair: Pair, tee: AttestedTee) -> None:
    """An expired challenge cannot be answered, an expired session gets nothing."""
    one, other, _ = pair
    session_id, _ = one.open("tdx", NOW)
    assert other.take_nonce(session_id, LATER) is None
    assert one.take_nonce(session_id, NOW) is not None
    assert one.attested(session_id, NOW) is None
    one.attest(session_id, tee, NOW)
    assert other.attested(session_id, LATER) is None


@pytest.mark.parametrize("made_up", ["", "x", "ä", "A" * 100, "A" * 5000, "====", "\udcff"])
def test_made_up_sessions_are_nothing(pair: Pair, made_up: str) -> None:
    """A session id that no broker made is refused, and leaves no row."""
    one, _, database = pair
    assert one.take_nonce(made_up, NOW) is None
    assert one.attested(made_up, NOW) is None
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM sessions")).scalar() == 0


def test_a_changed_session_id_is_nothing(pair: Pair) -> None:
    """Each changed byte, another spelling, and another key are refused."""
    one, _, database = pair
    session_id, _ = one.open("tdx", NOW)
    raw = base64.urlsafe_b64decode(session_id + "=" * (-len(session_id) % 4))
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        assert one.take_nonce(base64.urlsafe_b64encode(changed).decode().rstrip("="), NOW) is None
    assert one.take_nonce(session_id + "=", NOW) is None
    assert SharedSessions(database, SecretKey.generate(), 300).take_nonce(session_id, NOW) is None


def test_a_row_cannot_be_moved_or_forged(pair: Pair, tee: AttestedTee) -> None:
    """Whoever can write the database cannot lend one session's attestation to another."""
    one, other, database = pair
    attested, _ = one.open("tdx", NOW)
    mine, _ = one.open("tdx", NOW)
    for session_id in (attested, mine):
        one.take_nonce(session_id, NOW)
    one.attest(attested, tee, NOW)
    with database.write() as session:
        session.execute(text("UPDATE sessions SET state = (SELECT max(state) FROM sessions)"))
    assert one.attested(attested, NOW) is not None
    assert other.attested(mine, NOW) is None


def test_tokens_are_remembered_for_all(pair: Pair) -> None:
    """The evidence behind a token is known to every broker, the token itself to none."""
    one, other, database = pair
    one.remember_token("a.b.c", "ab" * 32, NOW)
    assert other.evidence_of("a.b.c", NOW) == "ab" * 32
    assert other.evidence_of("a.b.d", NOW) == ""
    assert other.evidence_of("a.b.c", LATER) == ""
    with database.read() as session:
        assert "a.b.c" not in str(session.execute(text("SELECT * FROM sessions")).all())


def test_expired_rows_are_deleted(pair: Pair) -> None:
    """The table does not grow with what is over."""
    one, _, database = pair
    for moment in (NOW, LATER + timedelta(seconds=61)):
        session_id, _ = one.open("tdx", moment)
        assert one.take_nonce(session_id, moment) is not None
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM sessions")).scalar() == 1

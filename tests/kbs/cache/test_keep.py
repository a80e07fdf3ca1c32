"""Leases: who is renewed, who is dropped, and who waits for a broker that is down."""

from __future__ import annotations

import threading
import time

import pytest

from cloister.crypto.locked import LockedSecret
from cloister.errors import BadCiphertext, CloisterError, ConfigError, KeyUnavailable, TransportError
from cloister.kbs.cache.keep import KeyKeep
from cloister.kbs.protocol import ResourcePath

A, B = "kbs:///models/dek/a", "kbs:///models/dek/b"
LEASE_S, GRACE_S = 100.0, 50.0


class Broker:
    """A broker and a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answers: dict[str, bytes | CloisterError] = {A: b"key-a", B: b"key-b"}
        self.asked: list[str] = []

    def fetch(self, uri: str) -> LockedSecret:
        self.asked.append(uri)
        answer = self.answers.get(uri, KeyUnavailable("no such key"))
        if isinstance(answer, CloisterError):
            raise answer
        return LockedSecret.of(answer, required=False)

    def keep(self, *uris: str) -> KeyKeep:
        return KeyKeep(uris or (A, B), self.fetch, lambda: self.now, lease_s=LEASE_S, grace_s=GRACE_S)

    def fail(self, error: CloisterError) -> None:
        self.answers = dict.fromkeys(self.answers, error)


def get(keep: KeyKeep, uri: str) -> bytes:
    with keep.lend(ResourcePath.from_uri(uri)) as view:
        return bytes(view)


DOWN = TransportError("key broker https://b cannot be reached")


def test_all_configured_keys_are_fetched_once() -> None:
    """After the first round every key is held, and siblings cost the broker nothing."""
    broker = Broker()
    keep = broker.keep()
    assert keep.renew().renewed == (A, B)
    assert [get(keep, uri) for uri in (A, B, A)] == [b"key-a", b"key-b", b"key-a"]
    assert broker.asked == [A, B]


def test_renewal_comes_at_half_the_lease() -> None:
    """Nothing is due before; then each key is asked for again, and a new value replaces the old one."""
    broker = Broker()
    keep = broker.keep()
    keep.renew()
    assert keep.wait_s() == LEASE_S / 2
    broker.now = LEASE_S / 2 - 1
    assert keep.renew().renewed == ()
    broker.answers[A] = b"new-a"
    broker.now += 1
    assert keep.renew().renewed == (A, B)
    assert get(keep, A) == b"new-a"


def test_a_revoked_key_is_dropped_at_the_next_renewal() -> None:
    """The broker's refusal takes the key away at once, although its lease is not over; others stay."""
    broker = Broker()
    keep = broker.keep()
    keep.renew()
    broker.answers[A] = KeyUnavailable("revoked")
    broker.now = LEASE_S / 2
    assert keep.renew().dropped == ((A, "revoked"),)
    with pytest.raises(KeyUnavailable, match="revoked"):
        get(keep, A)
    assert get(keep, B) == b"key-b"


def test_a_broker_that_is_down_costs_nothing_until_grace_is_over() -> None:
    """Within lease and grace the key is served; after it, refused and overwritten."""
    broker = Broker()
    keep = broker.keep()
    keep.renew()
    broker.fail(DOWN)
    broker.now = LEASE_S + GRACE_S - 1
    assert keep.renew().failed == DOWN.message
    assert get(keep, A) == b"key-a"
    broker.now += 1
    with pytest.raises(TransportError, match="cannot be reached"):
        get(keep, A)
    keep.renew()
    assert len(keep) == 0


def test_after_an_outage_everything_is_renewed() -> None:
    """When the broker is back, the next round renews what is due."""
    broker = Broker()
    keep = broker.keep()
    keep.renew()
    kept = dict(broker.answers)
    broker.fail(DOWN)
    broker.now = LEASE_S
    keep.renew()
    broker.answers = kept
    broker.now += 10
    assert keep.renew().renewed == (A, B)


def test_a_cold_cache_says_at_once_that_the_broker_is_down() -> None:
    """The first caller hears of it, and the next ones do not wait for the same broker again."""
    broker = Broker()
    keep = broker.keep()
    broker.fail(DOWN)
    for _ in range(3):
        with pytest.raises(TransportError, match=r"does not hold .*models/dek/a.* cannot be reached"):
            get(keep, A)
    assert broker.asked == [A]
    broker.now += 2
    with pytest.raises(TransportError):
        get(keep, A)
    assert broker.asked == [A, A]


def test_only_configured_keys() -> None:
    """A key that is not listed is refused without asking the broker."""
    broker = Broker()
    with pytest.raises(KeyUnavailable, match="not among"):
        get(broker.keep(A), B)
    assert broker.asked == []


def test_versions() -> None:
    """A URI without version allows each version, which is kept and renewed; one with it allows only that."""
    broker = Broker()
    broker.answers |= {f"{A}?version=1": b"a1", f"{B}?version=2": b"b2"}
    keep = broker.keep(A, f"{B}?version=2")
    assert get(keep, f"{A}?version=1") == b"a1"
    assert get(keep, f"{B}?version=2") == b"b2"
    for refused in (B, f"{B}?version=3"):
        with pytest.raises(KeyUnavailable, match="not among"):
            get(keep, refused)
    broker.now = LEASE_S / 2
    assert f"{A}?version=1" in keep.renew().renewed


def test_one_bad_key_does_not_stop_the_others() -> None:
    """An answer that does not open is that key's trouble alone, and no revocation."""
    broker = Broker()
    keep = broker.keep()
    keep.renew()
    broker.answers[A] = BadCiphertext("does not open")
    broker.now = LEASE_S / 2
    round_ = keep.renew()
    assert (round_.renewed, round_.failed) == ((B,), "does not open")
    assert get(keep, A) == b"key-a"


def test_callers_share_one_request() -> None:
    """Many callers of one missing key make one request; one that waits too long is told so."""
    broker = Broker()
    begun, go = threading.Event(), threading.Event()

    def slow(uri: str) -> LockedSecret:
        begun.set()
        go.wait(10)
        return broker.fetch(uri)

    keep = KeyKeep([A], slow, lambda: 0.0, lease_s=1, grace_s=0, patience_s=0.05)
    first = threading.Thread(target=get, args=(keep, A))
    first.start()
    begun.wait(10)
    with pytest.raises(TransportError, match="has not answered yet"):
        get(keep, A)
    go.set()
    first.join()
    assert get(keep, A) == b"key-a"
    assert broker.asked == [A]


def test_renewal_while_in_use() -> None:
    """Readers see a whole key, old or new, while renewals replace it under them."""
    broker = Broker()
    keep = KeyKeep([A], broker.fetch, time.monotonic, lease_s=1e-9 + 0.002, grace_s=10)
    stop = threading.Event()

    def renew() -> None:
        while not stop.is_set():
            keep.renew()

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        assert {get(keep, A) for _ in range(2000)} == {b"key-a"}
    finally:
        stop.set()
        renewing.join()


def test_clear() -> None:
    """At the end nothing is held."""
    keep = Broker().keep()
    keep.renew()
    keep.clear()
    assert len(keep) == 0


@pytest.mark.parametrize(("lease_s", "grace_s"), [(0, 1), (-1, 1), (1, -1)])
def test_impossible_times(lease_s: float, grace_s: float) -> None:
    """A lease has a length, and grace is not negative."""
    with pytest.raises(ConfigError):
        KeyKeep([A], Broker().fetch, lambda: 0.0, lease_s=lease_s, grace_s=grace_s)

"""Rate limit and metrics: who shows no credential is limited, and counters name nobody."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import ConfigError
from cloister.kbs.gate import step_of
from cloister.kbs.limits import RateLimit, client_of
from cloister.kbs.metrics import MetricsPort
from tests.kbs.broker_process import Run, RunningBroker
from tests.kbs.conftest import SECRET
from tests.ports import free_port


def test_a_bucket_empties_and_fills() -> None:
    """Two seconds' worth at once, then as many as the rate allows; the answer says how long to wait."""
    limit = RateLimit(10)
    assert [limit.wait_s("a", 0.0) for _ in range(20)] == [0.0] * 20
    assert limit.wait_s("a", 0.0) == pytest.approx(0.1)
    assert limit.peek_s("a", 0.05) == pytest.approx(0.05)
    assert limit.wait_s("a", 0.1) == 0.0
    assert limit.wait_s("a", 0.1) > 0
    assert limit.wait_s("b", 0.1) == 0.0
    assert [limit.wait_s("a", 1000.0) for _ in range(21)].count(0.0) == 20


def test_zero_is_no_limit() -> None:
    """A rate of 0 turns the limit off."""
    limit = RateLimit(0)
    assert {limit.wait_s("a", 0.0) for _ in range(1000)} == {0.0}
    assert limit.peek_s("a", 0.0) == 0.0


def test_the_table_is_bounded() -> None:
    """Many addresses do not fill the memory, and the one that asks most is not forgotten."""
    limit = RateLimit(1, limit=100)
    for number in range(1000):
        limit.wait_s("busy", 0.0)
        limit.wait_s(f"10.0.{number // 256}.{number % 256}", 0.0)
    assert len(limit) == 100
    assert limit.wait_s("busy", 0.0) > 0


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a:b:nonsense", "a:b:nonsense"),
    ],
)
def test_what_counts_as_one_client(address: str, client: str) -> None:
    """An IPv4 address, or an IPv6 network."""
    assert client_of(address) == client


def test_steps() -> None:
    """A path's step never holds the path."""
    assert step_of("/kbs/v0/auth", "POST") == "auth"
    assert step_of("/kbs/v0/attest", "POST") == "attest"
    assert step_of("/kbs/v0/resource/a/b/c", "GET") == "resource"
    assert step_of("/kbs/v0/resource/a/b/c", "POST") == "admin"
    assert step_of("/cloister/v0/revoke", "POST") == "admin"
    assert step_of("/healthz", "GET") == "other"


@pytest.fixture
def limited(platform: SimulatedPlatform, tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker that takes two challenges and attestations per second."""
    running = RunningBroker(tmp_path, platform, rate_limit=2.0)
    running.put("kbs:///models/key/digits", SECRET)
    yield running
    running.stop()


def test_challenges_are_limited_and_attested_tees_are_not(limited: RunningBroker) -> None:
    """A flood of challenges gets 429 with Retry-After; a TEE that attested before still gets its key."""
    with limited.http() as http, limited.http() as flood:
        run = Run(limited, http)
        run.auth()
        assert run.attest(run.body()).status_code == 200
        answers = [Run(limited, flood).auth() for _ in range(10)]
        assert {answer.status_code for answer in answers[-4:]} == {429}
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert answers[-1].json()["type"].endswith("/TooManyRequests")
        assert [run.get("models/key/digits").status_code for _ in range(6)] == [200] * 6
        assert http.get("/healthz").status_code == 200


def test_failed_credentials_are_limited(limited: RunningBroker) -> None:
    """Whoever guesses tokens has to wait; who has one is counted only when refused."""
    with limited.http() as http:
        run = Run(limited, http)
        found = [run.get("models/key/digits", "a.b.c").status_code for _ in range(8)]
        assert found[:4] == [401] * 4
        assert 429 in found[4:]


def test_a_forwarded_header_does_not_get_around_the_limit(limited: RunningBroker) -> None:
    """What counts is the connection's address, not what a client writes into a header."""
    with limited.http() as http:
        codes = [
            http.post("/kbs/v0/auth", json={}, headers={"X-Forwarded-For": f"10.0.0.{n}"}).status_code
            for n in range(10)
        ]
    assert 429 in codes


def test_metrics_name_no_resource(limited: RunningBroker) -> None:
    """Steps, outcomes and commits are counted; no path, address or key stands in them."""
    with limited.client() as client:
        assert client.get_resource("kbs:///models/key/digits") == SECRET
    with limited.http() as http:
        Run(limited, http).get("models/key/digits", "a.b.c")
    number = free_port()
    port = MetricsPort(limited.app.state.metrics, "127.0.0.1", number)
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=10).read().decode()
        with pytest.raises(ConfigError, match="cannot serve metrics"):
            MetricsPort(limited.app.state.metrics, "127.0.0.1", number)
    finally:
        port.close()
    assert 'cloister_broker_requests_total{status="2xx",step="resource"} 1.0' in page
    assert 'cloister_broker_refusals_total{variant="TokenVerifierError"} 1.0' in page
    assert "cloister_broker_audit_commits_total" in page
    assert 'cloister_broker_request_seconds_bucket{le="+Inf",step="auth"} 1.0' in page
    assert not any(word in page for word in ("digits", "models", "127.0.0.1", "tdx"))

"""The cache's HTTPS side: the broker's protocol, and every way in which a sibling can fail to pass it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
import structlog
from starlette.testclient import TestClient

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import TransportError
from cloister.kbs.appraiser import Appraiser
from cloister.kbs.cache.desk import SiblingDesk
from cloister.kbs.cache.service import create_app
from cloister.kbs.sessions import SessionTable
from cloister.policy.release import parse_release_policy
from tests.kbs.broker_process import REFERENCE, Run
from tests.kbs.cache.test_keep import A, B, Broker

LOG = structlog.wrap_logger(structlog.testing.CapturingLogger())
POLICY = 'permit (principal, action == Action::"release", resource) when { resource.tag == "a" };'
PATH = A.removeprefix("kbs:///")


class Desk:
    """A cache over keys A and B, whose policy releases A only; the clock and its broker are the test's."""

    def __init__(self, platform: SimulatedPlatform) -> None:
        self.platform = platform
        self.now = datetime.now(UTC)
        self.broker = Broker()
        endorsements = platform.endorsements(self.now)
        references = ReferenceValues.from_toml(REFERENCE)
        appraiser = Appraiser(
            reference_values=lambda: references,
            endorsements=lambda _scheme: endorsements,
            simulated_root=platform.root,
        )
        desk = SiblingDesk(
            self.broker.keep(A, B),
            SessionTable(60),
            appraiser=appraiser,
            policy=parse_release_policy(POLICY),
            token_ttl_s=60,
            log=LOG,
            clock=lambda: self.now,
        )
        self.http = TestClient(create_app(desk, LOG), base_url="https://cache", raise_server_exceptions=False)

    def run(self) -> Run:
        """A sibling that has attested nothing yet."""
        return Run(cast(Any, self), cast(Any, self.http))

    def attested(self, **quote: Any) -> tuple[Run, str]:
        """A sibling after step 2, and its token."""
        run = self.run()
        assert run.auth().status_code == 200
        answer = run.attest(run.body(**quote))
        assert answer.status_code == 200, answer.text
        return run, answer.json()["token"]


@pytest.fixture
def desk(platform: SimulatedPlatform) -> Iterator[Desk]:
    """A desk of this test's own."""
    made = Desk(platform)
    yield made
    made.http.close()


def test_release_by_cookie_and_by_token(desk: Desk) -> None:
    """An attested sibling gets the key under its own TEE key, by session and by token."""
    run, token = desk.attested()
    assert run.key.decrypt(run.get(PATH).json()) == b"key-a"
    run.http.cookies.clear()
    assert run.key.decrypt(run.get(PATH, token).json()) == b"key-a"


def test_policy_decides_each_key(desk: Desk) -> None:
    """What the policy does not permit is refused, although the cache holds it."""
    run, _ = desk.attested()
    answer = run.get(B.removeprefix("kbs:///"))
    assert answer.status_code == 401
    assert answer.json()["type"].endswith("/PolicyDeny")


@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        ({"mr_td": bytes(48)}, "mr_td"),
        ({"mr_config_id": bytes(48)}, "mr_config_id"),
        ({"debug": True}, "debug"),
        ({"report_data": bytes(64)}, "report_data"),
    ],
)
def test_evidence_that_is_not_acceptable(desk: Desk, quote: dict[str, Any], reason: str) -> None:
    """Another measurement, other settings, debug mode, or evidence about something else: no session."""
    run = desk.run()
    run.auth()
    answer = run.attest(run.body(**quote))
    assert answer.status_code == 401
    assert reason in answer.json()["detail"]
    assert run.get(PATH).status_code == 401


def test_evidence_is_good_once(desk: Desk) -> None:
    """The same evidence again, in the same session or in a new one, is refused."""
    run = desk.run()
    run.auth()
    recorded = run.body()
    assert run.attest(recorded).status_code == 200
    assert run.attest(recorded).status_code == 401
    run.auth()
    assert "nonce" in run.attest(recorded).json()["detail"]


def test_without_attestation(desk: Desk) -> None:
    """Neither nothing, nor a made-up cookie, nor a token of somebody else opens anything."""
    run = desk.run()
    assert run.get(PATH).json()["type"].endswith("/TokenNotFound")
    run.http.cookies.set("kbs-session-id", "guessed")
    assert run.get(PATH).status_code == 401
    _, foreign = Desk(desk.platform).attested()
    for token in ("x", foreign):
        assert run.get(PATH, token).json()["type"].endswith("/TokenVerifierError")


def test_sessions_and_tokens_expire(desk: Desk) -> None:
    """After their lifetime both are refused."""
    run, token = desk.attested()
    desk.now += timedelta(seconds=61)
    assert run.get(PATH).status_code == 401
    assert run.get(PATH, token).status_code == 401


def test_a_broker_that_is_down_is_no_refusal(desk: Desk) -> None:
    """A key that is not held, with the broker away, is 503: a lease on it elsewhere need not be given up."""
    desk.broker.fail(TransportError("key broker https://b cannot be reached"))
    run, _ = desk.attested()
    answer = run.get(PATH)
    assert answer.status_code == 503
    assert "cannot be reached" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "variant"),
    [
        ("auth", b"{", "SerdeError"),
        ("auth", msgspec.json.encode({"version": "0.1.0", "tee": "tdx"}), "AttestationError"),
        ("auth", msgspec.json.encode({"version": "0.4.0", "tee": "sample"}), "AttestationError"),
        ("attest", b"[]", "SerdeError"),
    ],
)
def test_messages_of_another_form(desk: Desk, path: str, body: bytes, variant: str) -> None:
    """What does not fit the protocol is refused with the protocol's error."""
    answer = desk.http.post(f"/kbs/v0/{path}", content=body)
    assert answer.status_code == 401
    assert answer.json()["type"].endswith(f"/{variant}")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_nobody_administers_a_cache(desk: Desk, method: str) -> None:
    """Keys are stored and deleted at the broker only."""
    answer = desk.http.request(method, f"/kbs/v0/resource/{PATH}", headers={"Authorization": "Bearer x"})
    assert answer.status_code in (404, 405)

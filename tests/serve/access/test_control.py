"""Credential, policy and limits together."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.policy.requests import WatchedPolicy
from cloister.serve.access.api_keys import make_api_key, remove_api_key
from cloister.serve.access.control import AccessControl, Forbidden, TooManyRequests, Unauthenticated
from cloister.serve.access.limits import CallerLimits
from cloister.serve.access.oidc import Issuer
from tests.serve.access.test_oidc import LocalIssuer, issuer, token

__all__ = ["issuer"]

POLICY = """
permit (principal, action == Action::"predict", resource) when { principal.kind == "api-key" };
permit (principal in Group::"radiology", action, resource);
"""
NOW = datetime.now(UTC)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy file."""
    path = tmp_path / "requests.cedar"
    path.write_text(POLICY)
    return path


def bearer(value: bytes | str) -> list[tuple[bytes, bytes]]:
    """One header."""
    return [(b"authorization", b"Bearer " + (value if isinstance(value, bytes) else value.encode()))]


def test_api_keys(policy: Path, tmp_path: Path) -> None:
    """A key lets in for what its policy permits, until it expires or is removed."""
    keys = tmp_path / "keys.jsonl"
    key = make_api_key(keys, "ci", now=NOW, expires=NOW + timedelta(hours=1))
    control = AccessControl(WatchedPolicy(policy), api_keys=keys)
    admission = control.admit("predict", "m", "", "tls", bearer(key))
    assert admission.caller.subject == "ci"
    assert admission.until_s == pytest.approx((NOW + timedelta(hours=1)).timestamp(), abs=1)
    assert control.admit("predict", "m", "", "tls", [(b"x-api-key", key.encode())]).caller.subject == "ci"
    with pytest.raises(Forbidden):
        control.admit("manage", "m", "", "tls", bearer(key))
    remove_api_key(keys, "ci")
    before = control.generation
    control.refresh()
    assert control.generation != before
    with pytest.raises(Unauthenticated):
        control.admit("predict", "m", "", "tls", bearer(key))


def test_anonymous_and_wrong_credentials(policy: Path, tmp_path: Path) -> None:
    """No credential is anonymous, which the policy refuses; a wrong one is never anonymous."""
    policy.write_text(POLICY + 'permit (principal, action, resource) when { resource.name == "public" };')
    keys = tmp_path / "keys.jsonl"
    make_api_key(keys, "ci", now=NOW)
    control = AccessControl(WatchedPolicy(policy), api_keys=keys)
    assert control.admit("predict", "public", "", "sealed", []).caller.kind == "anonymous"
    with pytest.raises(Forbidden) as refused:
        control.admit("predict", "m", "", "sealed", [])
    assert "public" not in refused.value.message
    wrong = [bearer("clk_wrong"), bearer("a.b.c"), [(b"authorization", b"Basic YTpi")], bearer("x") * 2]
    for headers in [*wrong, [(b"x-api-key", b"")]]:
        with pytest.raises(Unauthenticated):
            control.admit("predict", "public", "", "sealed", headers)
    nothing_to_check = AccessControl(WatchedPolicy(policy))
    for headers in wrong:
        admitted = nothing_to_check.admit("predict", "public", "", "sealed", headers)
        assert admitted.caller.kind == "anonymous"


def test_jwt(policy: Path, issuer: LocalIssuer) -> None:
    """A token of the issuer lets its groups in; keys are fetched by ``refresh``, never by ``admit``."""
    control = AccessControl(WatchedPolicy(policy), issuers=[Issuer(url=issuer.url, audience="models")])
    with pytest.raises(Unauthenticated):
        control.admit("manage", "m", "", "tls", bearer(token(issuer)))
    assert issuer.asked == []
    control.refresh()
    admission = control.admit("manage", "m", "", "tls", bearer(token(issuer)))
    assert admission.caller.tenant == "acme"
    assert admission.until_s <= time.time() + 61
    with pytest.raises(Unauthenticated):
        control.admit("manage", "m", "", "tls", bearer(token(issuer, exp=1)))
    with pytest.raises(Forbidden):
        control.admit("manage", "m", "", "tls", bearer(token(issuer, groups=[])))


def test_limits(policy: Path, tmp_path: Path) -> None:
    """Each caller has limits of its own, and hears when to come back."""
    keys = tmp_path / "keys.jsonl"
    one, two = (make_api_key(keys, name, now=NOW) for name in ("one", "two"))
    control = AccessControl(
        WatchedPolicy(policy), api_keys=keys, limits=CallerLimits(per_s=1), clock=lambda: NOW.timestamp()
    )
    for _ in range(2):
        control.admit("predict", "m", "", "tls", bearer(one))
    with pytest.raises(TooManyRequests) as refused:
        control.admit("predict", "m", "", "tls", bearer(one))
    assert refused.value.retry_after_s == 1
    control.admit("predict", "m", "", "tls", bearer(two))


def test_policy_changes_while_it_runs(policy: Path) -> None:
    """A changed policy decides from the next look on; one with a typo does not."""
    control = AccessControl(WatchedPolicy(policy))
    policy.write_text('permit (principal, action, resource) when { context.wey == "tls" };')
    control.refresh()
    with pytest.raises(Forbidden):
        control.admit("predict", "m", "", "tls", [])
    policy.write_text('permit (principal, action, resource) when { context.way == "tls" };')
    control.refresh()
    assert control.admit("predict", "m", "", "tls", []).caller.kind == "anonymous"
    with pytest.raises(Forbidden):
        control.admit("predict", "m", "", "open", [])

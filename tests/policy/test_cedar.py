"""The policy engine: denies by default, lets forbid win, fails closed, and says why."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.policy.cedar import (
    RELEASE_SCHEMA,
    UNSAFE_SIMULATED_POLICY,
    CedarPolicy,
    Decision,
    Entity,
    release_policy,
    shipped,
)

GOOD = {
    "tee": "tdx",
    "tier": "affirming",
    "simulated": False,
    "debug": False,
    "tcb_status": "UpToDate",
    "tcb_date": "2026-01-01T00:00:00Z",
    "advisory_ids": [],
    "hardware_id": "00",
    "mr_td": "aa" * 48,
}
NAMES = {"repository": "models", "type": "key", "tag": "1", "version": 1}
RESOURCE = Entity("Resource", "models/key/1", NAMES)
PERMIT = "permit (principal, action, resource);"


def decide(policy: CedarPolicy, change: dict[str, Any] | None = None) -> Decision:
    """Ask for the one resource with changed claims."""
    return policy.decide(Entity("Tee", "tdx"), "release", RESOURCE, {**GOOD, **(change or {})})


def with_schema(text: str) -> CedarPolicy:
    """A policy under the schema that ships."""
    return CedarPolicy.from_text(text, schema=shipped(RELEASE_SCHEMA))


def test_shipped_policy_permits_a_good_tee() -> None:
    """An appraised, up-to-date, genuine production TEE gets its key."""
    decision = decide(release_policy())
    assert decision.allowed
    assert decision.policy_ids == ("release-to-appraised-production-tees",)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"debug": True}, "no-debug-tee"),
        ({"simulated": True}, "no-simulated-tee"),
        ({"tcb_status": "OutOfDate"}, 'context.tcb_status == "UpToDate"'),
        ({"tcb_status": "uptodate"}, 'context.tcb_status == "UpToDate"'),
        ({"tier": "warning"}, 'context.tier == "affirming"'),
        ({"tier": "none"}, 'context.tier == "affirming"'),
    ],
)
def test_shipped_policy_refuses_and_names_the_cause(change: dict[str, Any], names: str) -> None:
    """Each property of a TEE that the shipped policy looks at refuses alone, and the reason names it."""
    decision = decide(release_policy(), change)
    assert not decision.allowed
    assert names in decision.reason


def test_unsafe_policy_serves_only_simulated_tees() -> None:
    """The demonstration's policy gives nothing to a genuine TEE, and nothing to a debug one."""
    policy = with_schema(shipped(UNSAFE_SIMULATED_POLICY))
    assert decide(policy, {"simulated": True}).allowed
    assert not decide(policy).allowed
    assert not decide(policy, {"simulated": True, "debug": True}).allowed


def test_no_policy_permits_nothing() -> None:
    """An empty policy set denies."""
    decision = decide(with_schema(""))
    assert not decision.allowed
    assert decision.policy_ids == ()
    assert "no policy permits" in decision.reason


def test_forbid_wins() -> None:
    """One forbid outweighs any number of permits, and is named."""
    decision = decide(with_schema(f'{PERMIT} @id("stop") forbid (principal, action, resource);'))
    assert not decision.allowed
    assert decision.policy_ids == ("stop",)


def test_policy_that_fails_is_a_denial() -> None:
    """A forbid that cannot be evaluated does not silently stop forbidding."""
    policy = CedarPolicy.from_text(f"{PERMIT} forbid (principal, action, resource) when {{ context.nope }};")
    decision = decide(policy)
    assert not decision.allowed
    assert "policy error" in decision.reason
    assert "nope" in decision.reason


@pytest.mark.parametrize(
    "context", [{}, {**GOOD, "debug": "no"}, {**GOOD, "unknown": 1}, {**GOOD, "tier": 2}]
)
def test_claims_that_do_not_fit_the_schema_are_a_denial(context: dict[str, Any]) -> None:
    """Claims that are missing, unknown or of another type deny, even where every request is permitted."""
    decision = with_schema(PERMIT).decide(Entity("Tee", "tdx"), "release", RESOURCE, context)
    assert not decision.allowed
    assert "policy error" in decision.reason


def test_another_action_is_denied() -> None:
    """An action that the schema does not know is denied."""
    assert not with_schema(PERMIT).decide(Entity("Tee", "tdx"), "erase", RESOURCE, GOOD).allowed


def test_policies_speak_of_resources() -> None:
    """A policy may depend on each part of the resource's path."""
    policy = with_schema(
        "permit (principal, action, resource) when"
        ' { resource.repository == "models" && resource.tag == "2" };'
    )
    decision = decide(policy)
    assert not decision.allowed
    assert 'resource.tag == "2"' in decision.reason
    assert 'resource.repository == "models"' not in decision.reason


def test_closest_policy_is_the_one_with_least_missing() -> None:
    """Of several permits, the denial names the one with the fewest failed conditions."""
    decision = decide(
        with_schema(
            '@id("far") permit (principal, action, resource) when { context.debug && context.simulated };'
            '@id("near") permit (principal, action, resource) when { context.tier == "affirming" }'
            ' unless { context has mr_td && context.mr_td like "aa*" };'
        )
    )
    assert "closest: near" in decision.reason
    assert "not (" in decision.reason


def test_what_differs_is_said_first() -> None:
    """Claims that a policy compares with another value are named; other conditions are shown as they are."""
    policy = CedarPolicy.from_text(
        '@id("a") permit (principal, action, resource)'
        ' when { context.mr_td == "11" && context.tcb_status == "UpToDate" && !context.debug };'
    )
    other, old, debug = {"mr_td": "22"}, {"tcb_status": "OutOfDate"}, {"debug": True}
    right = {"mr_td": "11"}
    assert "closest: a, mr_td and tcb_status differ: " in decide(policy, other | old).reason
    assert "closest: a, mr_td differs: " in decide(policy, other).reason
    assert "closest: a, where " in decide(policy, right | debug).reason
    unless = CedarPolicy.from_text('permit (principal, action, resource) unless { context.mr_td == "11" };')
    assert "differs" not in decide(unless, right).reason


def test_scope_that_does_not_match_is_said() -> None:
    """A permit for another principal is reported as such."""
    decision = decide(with_schema('permit (principal == Tee::"snp", action, resource);'))
    assert "its scope does not hold" in decision.reason


@pytest.mark.parametrize(
    "text",
    [
        "permit (principal",
        "allow all;",
        "permit (principal, action, resource) when { context.mrtd == 1 };",
        'permit (principal is User, action, resource) when { context.tee == "tdx" };',
        "permit (principal == ?principal, action, resource);",
    ],
)
def test_bad_policies_are_refused_at_load(text: str) -> None:
    """A policy that does not parse, names an unknown attribute or type, or is a template, never loads."""
    with pytest.raises(ConfigError):
        with_schema(text)


def test_files_are_read(tmp_path: Path) -> None:
    """A policy comes from a file; one that is missing or not text is an error that names it."""
    file = tmp_path / "p.cedar"
    file.write_text(PERMIT)
    assert decide(release_policy(file)).allowed
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"p\.cedar"):
        release_policy(file)
    with pytest.raises(ConfigError, match=r"absent\.cedar"):
        release_policy(tmp_path / "absent.cedar")


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_hostile_text_raises_only_config_errors(text: str) -> None:
    """Whatever stands in a policy file, loading it works or raises ConfigError."""
    with contextlib.suppress(ConfigError):
        with_schema(text)


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_hostile_names_are_denied_or_decided(tee: str, path: str) -> None:
    """Names with quotes, newlines or control characters are data, never policy syntax."""
    decision = release_policy().decide(
        Entity("Tee", tee), "release", Entity("Resource", path, dict(RESOURCE.attributes or {})), {}
    )
    assert not decision.allowed

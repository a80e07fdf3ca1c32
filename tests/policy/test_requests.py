"""Cedar about requests: default deny, groups and tenants, hot reload that keeps the former policy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.policy.requests import ANONYMOUS, Caller, RequestPolicy, WatchedPolicy

ALICE = Caller(kind="jwt", subject="alice", issuer="https://id.example", tenant="acme", groups=("radiology",))
TEAM = """
@id("radiology-may-ask-scans")
permit (principal in Group::"radiology", action in [Action::"predict", Action::"explain"], resource)
when { resource.name == "scans" && context.way == "sealed" };
@id("not-the-old-one") forbid (principal, action, resource) when { resource.version == "1.0" };
"""


def test_default_deny() -> None:
    """An empty policy allows nothing to anybody."""
    policy = RequestPolicy("")
    for caller in (ANONYMOUS, ALICE):
        assert not policy.decide(caller, "predict", "scans", "1", "sealed").allowed


def test_groups_and_conditions() -> None:
    """A member of the group may, over the sealed way, and forbid wins."""
    policy = RequestPolicy(TEAM)
    assert policy.decide(ALICE, "predict", "scans", "2.0", "sealed").policy_ids == (
        "radiology-may-ask-scans",
    )
    assert not policy.decide(ALICE, "manage", "scans", "2.0", "sealed").allowed
    assert not policy.decide(ALICE, "predict", "other", "2.0", "sealed").allowed
    assert not policy.decide(ANONYMOUS, "predict", "scans", "2.0", "sealed").allowed
    assert "context.way" in policy.decide(ALICE, "predict", "scans", "2.0", "tls").reason
    assert policy.decide(ALICE, "predict", "scans", "1.0", "sealed").reason == "forbidden by not-the-old-one"


def test_tenants() -> None:
    """Tenants are told apart by what the credential says."""
    policy = RequestPolicy('permit (principal, action, resource) when { principal.tenant == "acme" };')
    assert policy.decide(ALICE, "predict", "m", "", "tls").allowed
    assert not policy.decide(
        Caller(kind="jwt", subject="x", tenant="other"), "predict", "m", "", "tls"
    ).allowed


@pytest.mark.parametrize(
    "text",
    [
        "permit (principal, action, resource) when { context.tee == 1 };",
        'permit (principal, action == Action::"predct", resource);',
        'permit (principal, action, resource) when { principal.tennant == "a" };',
        "permit (principal action, resource);",
    ],
)
def test_a_typo_is_found_when_loaded(text: str) -> None:
    """A policy that names something that requests do not have is refused, not ignored."""
    with pytest.raises(ConfigError):
        RequestPolicy(text)


def test_names_are_data() -> None:
    """A model or subject whose name looks like policy text is a name."""
    policy = RequestPolicy('permit (principal, action, resource) when { resource.name == "a" };')
    evil = '" || true || "'
    assert not policy.decide(Caller(subject=evil, groups=(evil,)), "predict", evil, evil, "tls").allowed


def test_hot_reload(tmp_path: Path) -> None:
    """A changed file is taken over; a broken one is reported once and the former policy decides on."""
    path = tmp_path / "requests.cedar"
    path.write_text(TEAM)
    problems: list[ConfigError] = []
    watched = WatchedPolicy(path, on_problem=problems.append)
    assert not watched.refresh()
    path.write_text("permit (principal, action, resource) when { context.typo };")
    assert not watched.refresh()
    assert not watched.refresh()
    assert len(problems) == 1
    assert watched.policy.decide(ALICE, "predict", "scans", "2", "sealed").allowed
    path.write_text("forbid (principal, action, resource);  // closed")
    assert watched.refresh()
    assert watched.generation == 1
    assert not watched.policy.decide(ALICE, "predict", "scans", "2", "sealed").allowed
    path.unlink()
    assert not watched.refresh()
    assert not watched.policy.decide(ALICE, "predict", "scans", "2", "sealed").allowed
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ConfigError):
        WatchedPolicy(tmp_path / "absent")

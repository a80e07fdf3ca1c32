"""Policies in Rego, as they are brought from Trustee: only ``true`` permits, whatever goes wrong denies."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ConfigError, MissingDependencyError
from cloister.policy.rego import RegoPolicy
from cloister.policy.release import ReleaseRequest, is_rego, parse_release_policy

PATH = ("models", "key", "1")
AFFIRMING = """# comment first
package policy
import rego.v1

default allow = false

allow if {
    not any_not_affirming
    count(input.submods) > 0
}

any_not_affirming if {
    some _, submod in input.submods
    submod["ear.status"] != "affirming"
}
"""


def status(tier: str) -> dict[str, Any]:
    """An attestation result of one tier."""
    return {"submods": {"cpu0": {"ear.status": tier}}}


def allow(body: str) -> RegoPolicy:
    """A policy with one rule."""
    return RegoPolicy(f"package policy\nimport rego.v1\ndefault allow = false\nallow if {{ {body} }}\n")


@pytest.mark.parametrize(
    ("tier", "allowed"),
    [("affirming", True), ("warning", False), ("contraindicated", False), ("none", False)],
)
def test_a_policy_of_trustee(tier: str, allowed: bool) -> None:
    """The sample policy for affirming results permits these and no others."""
    assert RegoPolicy(AFFIRMING).decide(status(tier), PATH, {}).allowed is allowed


def test_nothing_attested_is_denied() -> None:
    """Claims that are missing deny."""
    decision = RegoPolicy(AFFIRMING).decide({}, PATH, {})
    assert not decision.allowed
    assert "data.policy.allow" in decision.reason


@pytest.mark.parametrize(
    "body",
    [
        'data.plugin == "resource"',
        'data["resource-path"] == ["models", "key", "1"]',
        'count(data["resource-path"]) == 3',
        'data.query.version == "2"',
        '"a" in query_reference_value("launch")',
    ],
)
def test_data_is_as_trustee_has_it(body: str) -> None:
    """Plugin, path as a list, query and registered values are there under Trustee's names."""
    values = {"launch": ["a", "b"]}
    assert allow(body).decide({}, PATH, {"version": "2"}, values).allowed
    assert not allow(body).decide({}, ("x", "y"), {}, {}, plugin="other").allowed


@pytest.mark.parametrize("value", ['"true"', "1", "[true]", "false", "null", "{}"])
def test_only_true_permits(value: str) -> None:
    """A rule that is anything but true, a text of it included, does not permit."""
    assert not RegoPolicy(f"package policy\nallow := {value}").decide({}, PATH, {}).allowed


@pytest.mark.parametrize(
    "text",
    [
        *("", "hello", "package policy", "package other\nallow := true", "package policy\nallow if {"),
        *("package policy\nallow := nosuch(1)", "package policy\n# allow := true\n", "x" * (1 << 19)),
    ],
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    """Text that does not compile, or has no rule allow in package policy."""
    with pytest.raises(ConfigError):
        RegoPolicy(text)


def test_a_policy_cannot_reach_out() -> None:
    """The engine has no network: a policy that would send a request is undefined."""
    policy = allow('http.send({"method": "get", "url": "http://127.0.0.1:9"}).status_code != 200')
    assert not policy.decide({}, PATH, {}).allowed


def test_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, a policy in Rego is an error that names it; Cedar goes on."""
    monkeypatch.setitem(sys.modules, "regopy", None)
    with pytest.raises(MissingDependencyError, match="regopy") as caught:
        parse_release_policy(AFFIRMING)
    assert "cloister[rego]" in caught.value.hint
    assert parse_release_policy("permit (principal, action, resource);")


def request(**change: Any) -> ReleaseRequest:
    """Somebody asks for version 2 of a key."""
    names = {"repository": "models", "type": "key", "tag": "1", "version": 2}
    return ReleaseRequest(**{"tee": "tdx", "context": {}, **names, **change})


def test_rego_releases_no_old_version() -> None:
    """Rego knows no minimum versions: an old one is denied whatever the policy says."""
    policy = parse_release_policy("package policy\nallow := true")
    assert policy.decide(request()).allowed
    assert not policy.decide(request(old=True)).allowed


def test_languages_are_told_apart() -> None:
    """A package makes it Rego; anything else, and nothing, is Cedar's to judge."""
    assert is_rego(AFFIRMING)
    assert not is_rego('// package policy\npermit (principal, action, resource);')  # fmt: skip
    for text in ("", " \n", "package"):
        with pytest.raises(ConfigError):
            parse_release_policy(text)


@given(st.text(max_size=80))
@settings(max_examples=40)
def test_hostile_policies(text: str) -> None:
    """Whatever text is set as a policy is refused or denies; nothing else is raised."""
    with contextlib.suppress(ConfigError):
        RegoPolicy(f"package policy\n{text}").decide({}, PATH, {})

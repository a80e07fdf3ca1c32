"""Credential, policy and limits together."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc.jwk import ECKey

from cloister.policy.requests import Caller, WatchedPolicy
from cloister.serve.access.api_keys import make_api_key, remove_api_key
from cloister.serve.access.audit import DecisionLog
from cloister.serve.access.control import (
    AccessControl,
    Forbidden,
    IssuerAway,
    TooManyRequests,
    Unauthenticated,
)
from cloister.serve.access.decision_file import verify_decisions
from cloister.serve.access.issuers import Issuer
from cloister.serve.access.limits import CallerLimits
from tests.fakes.authority import Authority
from tests.fakes.issuer import EC, RSA, LocalIssuer, make_token
from tests.serve.access.test_tokens import issuer, token

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
    with pytest.raises(IssuerAway) as away:
        control.admit("manage", "m", "", "tls", bearer(token(issuer)))
    assert (away.value.status, away.value.headers) == (503, [(b"retry-after", b"5")])
    assert issuer.asked == []
    control.refresh()
    admission = control.admit("manage", "m", "", "tls", bearer(token(issuer)))
    assert admission.caller.tenant == "acme"
    assert admission.until_s <= time.time() + 91
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


def der(pem: str) -> bytes:
    """A certificate as TLS gives it."""
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


IDENTITIES = """
[[certificate]]
uri = "spiffe://example.org/job"
name = "job"
tenant = "acme"
groups = ["radiology"]

[[certificate]]
dns = "other.example.org"
"""
JOB = x509.UniformResourceIdentifier("spiffe://example.org/job")


def test_client_certificates(policy: Path, tmp_path: Path) -> None:
    """A certificate is an identity, as the file says or by its own name; a credential comes first."""
    identities, keys = tmp_path / "identities.toml", tmp_path / "keys.jsonl"
    identities.write_text(IDENTITIES)
    key = make_api_key(keys, "ci", now=NOW)
    site = Authority()
    job, plain = der(site.issue("j", JOB)), der(site.issue("plain"))
    control = AccessControl(WatchedPolicy(policy), api_keys=keys, identities=identities)
    caller, until_s = control.identify([], job)
    assert caller == Caller(kind="mtls", subject="job", tenant="acme", groups=("radiology",))
    assert until_s == pytest.approx(time.time() + 86_400, abs=60)
    assert control.identify([], plain)[0].subject == "subject:CN=plain,O=Example"
    assert control.identify(bearer(key), job)[0].kind == "api-key"
    for wrong in (bearer("clk_wrong"), bearer("x"), [(b"authorization", b"Basic x")], bearer(key) * 2):
        with pytest.raises(Unauthenticated):
            control.identify(wrong, job)
    with pytest.raises(Unauthenticated):
        control.identify([], b"no certificate")
    late = AccessControl(WatchedPolicy(policy), clock=lambda: time.time() + 90_000)
    with pytest.raises(Unauthenticated, match="expired"):
        late.identify([], job)


def test_policies_see_certificates(policy: Path) -> None:
    """A policy can ask for a certificate besides another credential."""
    policy.write_text(
        'permit (principal, action, resource) when { context.certificate == "subject:CN=a,O=Example" };'
    )
    control = AccessControl(WatchedPolicy(policy))
    control.admit("predict", "m", "", "tls", [], certificate=der(Authority().issue("a")))
    for certificate in (b"", der(Authority().issue("b"))):
        with pytest.raises(Forbidden):
            control.admit("predict", "m", "", "tls", [], certificate=certificate)


def test_several_issuers(policy: Path, issuer: LocalIssuer, tmp_path: Path) -> None:
    """Each token is judged by its own issuer's keys and rules; with another's key it is refused."""
    second = LocalIssuer()
    stranger = ECKey.generate_key("P-256", {"kid": "ec"})
    second.keys = [stranger]
    identities = tmp_path / "identities.toml"
    identities.write_text(f'''
[[issuer]]
url = "{second.url}"
audience = ["models", "b"]
tenant = "second"
''')
    control = AccessControl(
        WatchedPolicy(policy), issuers=[Issuer(url=issuer.url, audience="models")], identities=identities
    )
    control.refresh()
    assert control.identify(bearer(token(issuer)))[0].tenant == "acme"
    assert control.identify(bearer(second.token(stranger)))[0].tenant == "second"
    for wrong in (second.token(), token(issuer, stranger), token(issuer, iss="https://nobody.example")):
        with pytest.raises(Unauthenticated):
            control.identify(bearer(wrong))
    second.close()


def test_unknown_keys_are_asked_for_with_a_limit(policy: Path, issuer: LocalIssuer) -> None:
    """A key that nobody knows has the issuer asked, but not more often than every few seconds."""
    control = AccessControl(WatchedPolicy(policy), issuers=[Issuer(url=issuer.url, audience="models")])
    control.refresh()
    before = issuer.asked.count("/keys")
    fresh = ECKey.generate_key("P-256", {"kid": "fresh"})
    issuer.keys.append(fresh)
    for _ in range(50):
        with pytest.raises(Unauthenticated):
            control.identify(bearer(token(issuer, fresh)))
        control.refresh()
    assert issuer.asked.count("/keys") == before
    (_, keys) = control._issuer_keys[issuer.url]
    keys._tried -= 10
    generation, digest = control.generation, control.callers_digest
    control.refresh()
    assert control.identify(bearer(token(issuer, fresh)))[0].subject == "alice"
    assert issuer.asked.count("/keys") == before + 1
    assert control.generation != generation
    assert control.callers_digest == digest


def test_identities_change_while_it_runs(policy: Path, tmp_path: Path) -> None:
    """A changed file is taken over and changes the digest; a broken one is reported and not."""
    identities = tmp_path / "identities.toml"
    identities.write_text(IDENTITIES)
    problems: list[str] = []
    control = AccessControl(
        WatchedPolicy(policy), identities=identities, on_problem=lambda error: problems.append(error.message)
    )
    job = der(Authority().issue("j", JOB))
    before = control.callers_digest
    for broken in ("[[certificate]]", "x = 1", "\x00", IDENTITIES + IDENTITIES.replace("uri", "urn")):
        identities.write_text(broken)
        control.refresh()
        control.refresh()
        assert control.identify([], job)[0].subject == "job"
        assert control.callers_digest == before
    assert len(problems) == 4
    identities.unlink()
    control.refresh()
    control.refresh()
    assert len(problems) == 5
    identities.write_text(IDENTITIES.replace('"job"', '"renamed"'))
    control.refresh()
    assert control.identify([], job)[0].subject == "renamed"
    assert control.callers_digest != before


def test_digest_of_callers(policy: Path, tmp_path: Path) -> None:
    """Keys, issuers, their keys in files, authorities of either: each changes the digest."""
    keys, jwks = tmp_path / "keys.jsonl", tmp_path / "jwks.json"
    make_api_key(keys, "one", now=NOW)
    jwks.write_text(json.dumps({"keys": [EC.as_dict(private=False)]}))
    filed = Issuer(url="https://i.example", audience="models", jwks_file=str(jwks))
    digests = set()
    for content in (b"a", b"b"):
        (tmp_path / "ca.pem").write_bytes(content)
        secured = Issuer(url="https://i.example", audience="models", ca=str(tmp_path / "ca.pem"))
        digests.add(AccessControl(WatchedPolicy(policy), issuers=[secured]).callers_digest)
    for options in (
        {},
        {"api_keys": keys},
        {"issuers": [Issuer(url="https://i.example", audience="models")]},
        {"issuers": [Issuer(url="https://i.example", audience="others")]},
        {"issuers": [filed]},
        {"client_ca": b"a"},
        {"client_ca": b"b"},
    ):
        digests.add(AccessControl(WatchedPolicy(policy), **options).callers_digest)
    control = AccessControl(WatchedPolicy(policy), issuers=[filed])
    control.refresh()
    digests.add(control.callers_digest)
    jwks.write_text(json.dumps({"keys": [RSA.as_dict(private=False)]}))
    control.refresh()
    digests.add(control.callers_digest)
    with pytest.raises(Unauthenticated):
        control.identify(bearer(make_token("https://i.example")))
    assert control.identify(bearer(make_token("https://i.example", RSA, "RS256")))[0].subject == "alice"
    assert len(digests) == 11


def test_what_is_logged(policy: Path, tmp_path: Path) -> None:
    """Refused credentials and requests, and those over a limit, are logged; no credential is."""
    keys, path = tmp_path / "keys.jsonl", tmp_path / "decisions.jsonl"
    key, signer = make_api_key(keys, "ci", now=NOW), ed25519.Ed25519PrivateKey.generate()
    log = DecisionLog(path, signer)
    control = AccessControl(WatchedPolicy(policy), api_keys=keys, limits=CallerLimits(per_day=1), log=log)
    control.admit("predict", "m", "", "tls", bearer(key))
    for headers, error in (
        (bearer(key), TooManyRequests),
        ([], Forbidden),
        (bearer("clk_canary"), Unauthenticated),
        (bearer("canary.canary.canary"), Unauthenticated),
    ):
        with pytest.raises(error):
            control.admit("predict", "m", "", "tls", headers)
    log.close()
    summary = verify_decisions(path, signer.public_key())
    assert (summary.permitted, summary.refused) == (1, 4)
    entries = [json.loads(line)["entry"] for line in path.read_text().splitlines() if '"entry"' in line]
    assert {entry["subject"] for entry in entries} == {"api-key:ci", "anonymous:", "unauthenticated:"}
    assert "over the caller's rate or quota" in {entry["reason"] for entry in entries}
    assert "canary" not in path.read_text()
    assert key not in path.read_text()


def test_the_log_outlives_any_name(policy: Path, issuer: LocalIssuer, tmp_path: Path) -> None:
    """Whoever may choose their own subject cannot choose one that ends the log of decisions."""
    signer, path = ed25519.Ed25519PrivateKey.generate(), tmp_path / "decisions.jsonl"
    log = DecisionLog(path, signer)
    named = Issuer(url=issuer.url, audience="models")
    control = AccessControl(WatchedPolicy(policy), issuers=(named,), log=log)
    control.refresh()
    for subject in ("\ud800", "a\x00b\r\n", "\u202e"):
        with contextlib.suppress(Unauthenticated):
            control.admit("predict", "m", "", "tls", bearer(issuer.token(sub=subject)))
    log.close()
    summary = verify_decisions(path, signer.public_key())
    assert (summary.permitted, summary.refused) == (2, 1)

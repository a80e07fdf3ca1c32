"""The broker over HTTPS: a key for the right TEE, a reasoned and recorded refusal for every other one."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import ECKey

from cloister.crypto.jwe import TeePrivateKey
from cloister.kbs.admin import issue_admin_token
from cloister.kbs.audit import read_audit_log, verify_audit_log
from cloister.kbs.owner_files import load_or_make_ed25519, load_or_make_p256
from cloister.policy.cedar import RELEASE_POLICY, shipped
from tests.kbs.broker_process import REFERENCE, Run, RunningBroker
from tests.kbs.conftest import SECRET

PREFIX = "https://github.com/confidential-containers/kbs/errors/"


@pytest.fixture
def run(broker: RunningBroker) -> Iterator[Run]:
    """A run of the protocol by hand."""
    with broker.http() as http:
        yield Run(broker, http)


def variant(response: Any) -> str:
    """The error variant of a response, which must have exactly the members of the protocol."""
    body = response.json()
    assert set(body) == {"type", "detail"}
    assert body["type"].startswith(PREFIX)
    assert "\n" not in body["detail"]
    return str(body["type"].removeprefix(PREFIX))


def last_entry(broker: RunningBroker) -> dict[str, Any]:
    """The newest line of the audit log, which must verify."""
    verify_audit_log(broker.settings)
    return read_audit_log(broker.settings)[-1]


def test_full_release_by_cookie(run: Run) -> None:
    """Challenge, evidence, resource: the secret comes encrypted to the TEE's key and is recorded."""
    assert run.auth().json()["extra-params"] == ""
    assert len(base64.b64decode(run.nonce)) == 32
    assert set(run.attest(run.body()).json()) == {"token"}
    response = run.get("models/key/digits")
    assert set(response.json()) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
    assert run.key.decrypt(response.json()) == SECRET
    entry = last_entry(run.broker)
    assert (entry["kind"], entry["resource"]) == ("release", "models/key/digits?version=1")
    assert entry["policy_ids"] == ["unsafe-release-to-simulated-tees"]
    assert entry["claims"]["mr_td"] == "11" * 48
    assert entry["claims"]["simulated"] is True
    assert len(entry["evidence_digest"]) == 64


def test_full_release_by_token(run: Run) -> None:
    """The token alone, without the cookie, is as good, and names the key that the evidence bound."""
    run.auth()
    token = run.attest(run.body()).json()["token"]
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    cpu = claims["submods"]["cpu0"]
    annotated = cpu["ear.veraison.annotated-evidence"]
    assert annotated["runtime_data_claims"]["tee-pubkey"] == run.key.public_jwk
    run.http.cookies.clear()
    assert run.key.decrypt(run.get("models/key/digits", token).json()) == SECRET
    entry = last_entry(run.broker)
    assert entry["kind"] == "release"
    assert len(entry["evidence_digest"]) == 64


def test_session_cookie_is_guarded(run: Run) -> None:
    """The cookie is kept from scripts and plain HTTP."""
    cookie = run.auth().headers["set-cookie"]
    assert cookie.startswith("kbs-session-id=")
    assert "HttpOnly" in cookie
    assert "Secure" in cookie


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"version": "0.3.0"}, "0.4.0"),
        ({"version": "0.1.1"}, "0.4.0"),
        ({"tee": "sample"}, "proves nothing"),
        ({"tee": "sampledevice"}, "proves nothing"),
        ({"tee": "sev"}, "unknown TEE"),
    ],
)
def test_auth_refuses(run: Run, change: dict[str, str], names: str) -> None:
    """Another protocol version, a TEE that proves nothing, and an unknown TEE get no challenge."""
    response = run.auth(**change)
    assert (response.status_code, variant(response)) == (401, "AttestationError")
    assert names in response.json()["detail"]
    assert "set-cookie" not in response.headers


def spoil_nonce(run: Run, body: dict[str, Any]) -> None:
    body["runtime-data"]["nonce"] = base64.b64encode(bytes(32)).decode()


def spoil_key(run: Run, body: dict[str, Any]) -> None:
    body["runtime-data"]["tee-pubkey"] = TeePrivateKey.generate().public_jwk


def spoil_algorithm(run: Run, body: dict[str, Any]) -> None:
    body["runtime-data"]["tee-pubkey"] = {"kty": "RSA", "alg": "RSA1_5", "n": "AQAB", "e": "AQAB"}


def spoil_quote(run: Run, body: dict[str, Any]) -> None:
    primary = body["tee-evidence"]["primary_evidence"]
    quote = bytearray(base64.b64decode(primary["quote"]))
    quote[200] ^= 1
    primary["quote"] = base64.b64encode(quote).decode()


def spoil_additional(run: Run, body: dict[str, Any]) -> None:
    body["tee-evidence"]["additional_evidence"] = '{"nvidia": {}}'


def spoil_shape(run: Run, body: dict[str, Any]) -> None:
    body["tee-evidence"] = "fakeevidence"


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (spoil_nonce, "nonce"),
        (spoil_key, "bound to other data"),
        (spoil_algorithm, "RSA-OAEP-256"),
        (spoil_quote, ""),
        (spoil_additional, "additional devices"),
        (spoil_shape, "tee-evidence"),
    ],
)
def test_attest_refuses(run: Run, spoil: Any, names: str) -> None:
    """A foreign nonce, a swapped key, RSA1_5, a changed quote: refused with the reason, and recorded."""
    run.auth()
    body = run.body()
    spoil(run, body)
    response = run.attest(body)
    assert (response.status_code, variant(response)) == (401, "AttestationError")
    assert names in response.json()["detail"]
    entry = last_entry(run.broker)
    assert (entry["kind"], entry["reason"]) == ("refusal", response.json()["detail"])
    assert run.get("models/key/digits").status_code == 401


@pytest.mark.parametrize(
    ("quote", "names"),
    [
        ({"mr_td": bytes(48)}, "mr_td"),
        ({"mr_config_id": bytes(48)}, "mr_config_id"),
        ({"debug": True}, "debug"),
    ],
)
def test_appraisal_refuses(run: Run, quote: dict[str, Any], names: str) -> None:
    """Another measurement, other settings, a debug TEE: answer and log name the failed check."""
    run.auth()
    response = run.attest(run.body(**quote))
    assert (response.status_code, variant(response)) == (401, "AttestationError")
    assert names in response.json()["detail"]
    entry = last_entry(run.broker)
    assert entry["kind"] == "refusal"
    assert entry["claims"]["debug"] is quote.get("debug", False)


def test_a_nonce_is_used_once(run: Run) -> None:
    """The same session cannot attest twice, neither after success nor after failure."""
    run.auth()
    body = run.body()
    assert run.attest(body).status_code == 200
    again = run.attest(body)
    assert (again.status_code, variant(again)) == (401, "AttestationError")
    run.auth()
    assert run.attest(run.body(mr_td=bytes(48))).status_code == 401
    assert run.attest(run.body()).status_code == 401


def test_evidence_of_one_session_is_nothing_in_another(run: Run) -> None:
    """A replayed attestation does not fit the nonce of the session that it is replayed into."""
    run.auth()
    body = run.body()
    run.auth()
    response = run.attest(body)
    assert response.status_code == 401
    assert "nonce" in response.json()["detail"]


def test_attest_without_session(run: Run) -> None:
    """Evidence without a cookie, or with a made-up one, is refused."""
    run.auth()
    body = run.body()
    run.http.cookies.clear()
    assert variant(run.attest(body)) == "AttestationError"
    run.http.cookies.set("kbs-session-id", "made-up", domain="127.0.0.1")
    assert run.attest(body).status_code == 401


def test_resource_needs_attestation(run: Run) -> None:
    """No credential, a session that has not attested, and a made-up token get nothing."""
    assert variant(run.get("models/key/digits")) == "TokenNotFound"
    run.auth()
    assert variant(run.get("models/key/digits")) == "TokenNotFound"
    for token in ("x", "a.b.c", (run.broker.state / "admin.token").read_text()):
        response = run.get("models/key/digits", token)
        assert (response.status_code, variant(response)) == (401, "TokenVerifierError")


def forged_token(run: Run, **change: Any) -> str:
    """The token of an honest run, with other claims, signed with the broker's own key."""
    run.auth()
    token = run.attest(run.body()).json()["token"]
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    key = load_or_make_p256(run.broker.state / "token.key")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    run.http.cookies.clear()
    return jwt.encode({"alg": "ES256"}, {**claims, **change}, ECKey.import_key(pem))


@pytest.mark.parametrize(
    "change", [{"exp": 1}, {"submods": {}}, {"submods": {"cpu0": {"ear.status": "none"}}}]
)
def test_expired_or_partial_tokens(run: Run, change: dict[str, Any]) -> None:
    """A token that has expired or lacks the TEE key is refused, even if we signed it."""
    response = run.get("models/key/digits", forged_token(run, **change))
    assert (response.status_code, variant(response)) == (401, "TokenVerifierError")


def test_missing_resource_is_401(run: Run) -> None:
    """A resource that is not there looks to the client as any other refusal, and is recorded."""
    run.auth()
    run.attest(run.body())
    response = run.get("models/key/absent")
    assert (response.status_code, variant(response)) == (401, "PluginInternalError")
    assert last_entry(run.broker)["resource"] == "models/key/absent"
    assert run.get("models/key/digits?version=7").status_code == 401


@pytest.mark.parametrize(
    "path", ["models/key", "models", "", "a/b/c/d", "a/b/%2e%2e", "a//c", "a/b/c?version=x"]
)
def test_bad_paths_are_404(run: Run, path: str) -> None:
    """A path that cannot be a resource is 404, before any credential is looked at."""
    response = run.get(path)
    assert (response.status_code, variant(response)) == (404, "InvalidRequestPath")


def test_unknown_plugins_and_paths_are_404(run: Run) -> None:
    """Plugins that this broker does not have, and paths outside of it, have the protocol's error body."""
    assert variant(run.http.get("/kbs/v0/pkcs11/a/b")) == "PluginNotFound"
    for path in ("/", "/kbs", "/kbs/v1/auth"):
        response = run.http.get(path)
        assert (response.status_code, variant(response)) == (404, "InvalidRequestPath")
    assert run.http.get("/kbs/v0/auth").status_code in (404, 405)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"version":4}', b"[" * 5000])
def test_malformed_bodies(run: Run, body: bytes) -> None:
    """What is not a message is a SerdeError."""
    for path in ("/kbs/v0/auth", "/kbs/v0/attest"):
        response = run.http.post(path, content=body)
        assert (response.status_code, variant(response)) == (401, "SerdeError")


def test_oversize_bodies(run: Run) -> None:
    """A body over the limit is refused by its declared length, and by what arrives without one."""
    assert run.http.post("/kbs/v0/auth", content=b" " * 20_000).status_code == 413
    chunks = iter([b" " * 10_000] * 3)
    response = run.http.post("/kbs/v0/auth", content=chunks)
    assert (response.status_code, variant(response)) == (413, "SerdeError")


def test_health(run: Run) -> None:
    """The health check needs nothing and tells nothing."""
    assert run.http.get("/healthz").json() == {"status": "ok"}


def test_administration_needs_the_admin_token(run: Run) -> None:
    """No token, another role, an expired token, a TEE's token: none can store, delete or list."""
    now = datetime.now(UTC)
    key = load_or_make_ed25519(run.broker.state / "admin.key")
    run.auth()
    tee_token = run.attest(run.body()).json()["token"]
    tokens = [
        None,
        issue_admin_token(key, now, role="auditor"),
        issue_admin_token(key, now - timedelta(days=400)),
        tee_token,
        "x.y.z",
    ]
    for token in tokens:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        for method, path in (("POST", "/a/b/c"), ("DELETE", "/models/key/digits"), ("GET", "")):
            response = run.http.request(method, f"/kbs/v0/resource{path}", headers=headers)
            assert (response.status_code, variant(response)) == (401, "AdminAuth")
    assert run.get("models/key/digits").status_code == 200


def test_policy_denial_names_the_policy(own_broker: RunningBroker) -> None:
    """A policy that the owner changes takes effect on the next request, with a recorded reason."""
    with own_broker.http() as http:
        run = Run(own_broker, http)
        run.auth()
        run.attest(run.body())
        assert run.get("models/key/digits").status_code == 200
        allow = "permit (principal, action, resource);"
        own_broker.policy.write_text(allow + '@id("lunch") forbid (principal, action, resource);')
        response = run.get("models/key/digits")
        assert (response.status_code, variant(response)) == (401, "PolicyDeny")
        assert "lunch" in response.json()["detail"]
        assert last_entry(own_broker)["policy_ids"] == ["lunch"]
        own_broker.policy.write_text("permit (principal")
        response = run.get("models/key/digits")
        assert (response.status_code, variant(response)) == (401, "PolicyEngine")
        assert "release.cedar" in last_entry(own_broker)["reason"]
        assert "release.cedar" not in response.json()["detail"]


def test_shipped_policy_refuses_a_simulated_tee(own_broker: RunningBroker) -> None:
    """Without a policy of the owner's, a simulated TEE gets no key even where it may attest."""
    own_broker.policy.write_text(shipped(RELEASE_POLICY))
    with own_broker.http() as http:
        run = Run(own_broker, http)
        run.auth()
        assert run.attest(run.body()).status_code == 200
        response = run.get("models/key/digits")
        assert variant(response) == "PolicyDeny"
        assert "no-simulated-tee" in response.json()["detail"]


def test_reference_values_are_read_again(own_broker: RunningBroker) -> None:
    """A new measurement works without a restart; a broken or empty file refuses everybody."""
    with own_broker.http() as http:
        run = Run(own_broker, http)

        def attest(**quote: Any) -> Any:
            run.auth()
            return run.attest(run.body(**quote))

        other = {"mr_td": bytes([7]) * 48}
        assert attest(**other).status_code == 401
        own_broker.reference.write_text(REFERENCE.replace("mr_td = [", f'mr_td = ["{"07" * 48}", '))
        assert attest(**other).status_code == 200
        for broken in ("mr_td = [", "", "[tdx]\nmr_td = []\n", REFERENCE.replace("true", "false")):
            own_broker.reference.write_text(broken)
            assert attest().status_code == 401
            assert last_entry(own_broker)["kind"] == "refusal"
        own_broker.reference.unlink()
        assert attest().status_code == 401
        assert "reference.toml" in last_entry(own_broker)["reason"]
        own_broker.reference.write_text(REFERENCE)
        assert attest().status_code == 200


def test_no_reference_values_refuse_everybody(platform: Any, tmp_path: Any) -> None:
    """A broker that was told of no acceptable TEE accepts none."""
    running = RunningBroker(tmp_path, platform, reference_values="")
    try:
        with running.http() as http:
            run = Run(running, http)
            run.auth()
            assert run.attest(run.body()).status_code == 401
            assert "no reference values" in last_entry(running)["reason"]
    finally:
        running.stop()


def test_without_the_simulated_root_nothing_simulated_is_genuine(platform: Any, tmp_path: Any) -> None:
    """A broker that was not given a simulation's root does not know it."""
    running = RunningBroker(tmp_path, platform, simulated_root="")
    try:
        with running.http() as http:
            run = Run(running, http)
            run.auth()
            response = run.attest(run.body())
            assert (response.status_code, variant(response)) == (401, "AttestationError")
            assert last_entry(running)["claims"] == {}
    finally:
        running.stop()


def test_no_release_without_an_audit_entry(own_broker: RunningBroker) -> None:
    """A broker whose audit log was beheaded releases nothing any more."""
    with sqlite3.connect(own_broker.state / "kbs.sqlite") as connection:
        connection.execute("DELETE FROM audit_head")
    connection.close()
    with own_broker.http() as http:
        run = Run(own_broker, http)
        run.auth()
        assert run.attest(run.body()).status_code == 200
        response = run.get("models/key/digits")
        assert (response.status_code, variant(response)) == (503, "PluginInternalError")
        assert "ciphertext" not in response.text
        assert "audit log has no head" in json.dumps(own_broker.logs)


def test_a_record_that_was_changed_at_rest(own_broker: RunningBroker) -> None:
    """A changed record is refused and recorded; nothing of it is released."""
    with sqlite3.connect(own_broker.state / "kbs.sqlite") as connection:
        connection.execute("UPDATE resource_versions SET ciphertext = wrapped_key")
    connection.close()
    with own_broker.http() as http:
        run = Run(own_broker, http)
        run.auth()
        run.attest(run.body())
        assert variant(run.get("models/key/digits")) == "PluginInternalError"
        assert last_entry(own_broker)["kind"] == "refusal"


def test_secrets_are_in_no_file_and_no_log(own_broker: RunningBroker) -> None:
    """After a release the raw key is in no file of the broker, in no form, and in no log line."""
    with own_broker.client() as client:
        assert client.get_resource("kbs:///models/key/digits") == SECRET
    forms = [SECRET, SECRET.hex().encode(), base64.b64encode(SECRET), base64.urlsafe_b64encode(SECRET)[:40]]
    for file in own_broker.folder.rglob("*"):
        if file.is_file():
            raw = file.read_bytes()
            assert not any(form in raw for form in forms), file
    lines = json.dumps(own_broker.logs, default=str).encode()
    assert b"released" in lines
    assert not any(form in lines for form in forms)
    assert (own_broker.state / "admin.token").read_bytes() not in lines

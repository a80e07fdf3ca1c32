"""Our broker as Trustee's guests and administrators know a KBS: shapes, codes, policies in Rego."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.binding import report_data_for
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.simulated.snp import SimulatedSnpPlatform
from cloister.attest.snp.trustee import render_trustee_evidence
from cloister.crypto.jwe import TeePrivateKey, TeePublicKey
from cloister.kbs.admin import issue_admin_token
from cloister.kbs.owner_files import load_or_make_ed25519
from tests.kbs.broker_process import REFERENCE, Run, RunningBroker
from tests.kbs.conftest import SECRET
from tests.kbs.test_server import last_entry, variant

AFFIRM = """package policy
import rego.v1
default allow = false
allow if {
    input.submods.cpu0["ear.status"] in {"affirming", "warning"}
    input.submods.cpu0["ear.veraison.annotated-evidence"].tdx.quote.body.mr_td == "%s"
    data.plugin == "resource"
    data["resource-path"] == ["models", "key", "digits"]
}
""" % ("11" * 48)  # fmt: skip


@pytest.fixture
def unpinned(platform: SimulatedPlatform, tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker whose settings pin neither a policy nor reference values, and that allows sample evidence."""
    running = RunningBroker(tmp_path, platform, policy="", reference_values="", allow_sample=True)
    running.put("kbs:///models/key/digits", SECRET)
    with running.admin() as admin:
        admin.set_reference_values(REFERENCE)
    yield running
    running.stop()


def admin_http(broker: RunningBroker, role: str = "admin") -> httpx.Client:
    """An administrator's HTTP client."""
    key = load_or_make_ed25519(broker.state / "admin.key")
    http = broker.http()
    http.headers["Authorization"] = f"Bearer {issue_admin_token(key, datetime.now(UTC), role=role)}"
    return http


def b64url(text: str) -> str:
    """base64url without padding, as Trustee's client sends policies."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def released(broker: RunningBroker, **quote: Any) -> httpx.Response:
    """The answer to one honest run for ``models/key/digits``."""
    with broker.http() as http:
        run = Run(broker, http)
        run.auth()
        attested = run.attest(run.body(**quote))
        return run.get("models/key/digits") if attested.status_code == 200 else attested


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-521", "RSA"],
)
def test_every_kind_of_tee_key(broker: RunningBroker, key: Any) -> None:
    """P-256, P-521 and RSA-OAEP-256 keys each get a resource, by cookie and by token."""
    with broker.http() as http:
        run = Run(broker, http, key=TeePrivateKey(key))
        run.auth()
        token = run.attest(run.body()).json()["token"]
        assert run.key.decrypt(run.get("models/key/digits").json()) == SECRET
        http.cookies.clear()
        answer = run.get("models/key/digits", token).json()
        assert run.key.decrypt(answer) == SECRET
        header = json.loads(base64.urlsafe_b64decode(answer["protected"] + "=="))
        assert list(header)[:2] == ["alg", "enc"]
        assert ("epk" in header) == isinstance(key, ec.EllipticCurvePrivateKey)


def test_guests_own_header_is_reproduced(broker: RunningBroker) -> None:
    """A guest that parses the header and writes it again, compact and in order, opens the message."""
    with broker.http() as http:
        run = Run(broker, http)
        run.auth()
        run.attest(run.body())
        answer = run.get("models/key/digits").json()
    header = json.loads(base64.urlsafe_b64decode(answer["protected"] + "=="))
    again = {"alg": header.pop("alg"), "enc": header.pop("enc"), **dict(sorted(header.items()))}
    again["epk"] = dict(sorted(again["epk"].items()))
    assert b64url(json.dumps(again, separators=(",", ":"))) == answer["protected"]


def test_a_rego_policy_decides(unpinned: RunningBroker) -> None:
    """A policy that is posted as Trustee's client posts it permits by measurement and path, and no other."""
    assert variant(released(unpinned)) == "PolicyDeny"
    with admin_http(unpinned) as http:
        answer = http.post("/kbs/v0/resource-policy", json={"policy": b64url(AFFIRM)})
        assert (answer.status_code, answer.content) == (200, b"")
        assert http.get("/kbs/v0/resource-policy").text == AFFIRM
    assert released(unpinned).status_code == 200
    assert last_entry(unpinned)["policy_ids"] == ["data.policy.allow"]
    with admin_http(unpinned) as http:
        http.post("/kbs/v0/resource-policy", json={"policy": b64url(AFFIRM.replace("11" * 48, "22" * 48))})
    refused = released(unpinned)
    assert (refused.status_code, variant(refused)) == (401, "PolicyDeny")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "SerdeError"),
        (b"{}", "SerdeError"),
        (json.dumps({"policy": "not base64!"}).encode(), "SerdeError"),
        (json.dumps({"policy": b64url("package policy\nallow if {")}).encode(), "PolicyEngine"),
        (json.dumps({"policy": b64url("permit (principal")}).encode(), "PolicyEngine"),
        (json.dumps({"policy": ""}).encode(), "PolicyEngine"),
    ],
)
def test_broken_policies_are_refused_and_change_nothing(
    unpinned: RunningBroker, body: bytes, name: str
) -> None:
    """What is not a policy is refused when it is set; the one before decides on."""
    with admin_http(unpinned) as http:
        answer = http.post("/kbs/v0/resource-policy", content=body)
        assert (answer.status_code, variant(answer)) == (401, name)
        assert variant(http.get("/kbs/v0/resource-policy")) == "PolicyEngine"


def test_a_pinned_policy_cannot_be_replaced(broker: RunningBroker) -> None:
    """Who pins policy and reference values by files does not have them replaced over the network."""
    with admin_http(broker) as http:
        for path, body in (
            ("/kbs/v0/resource-policy", json.dumps({"policy": b64url(AFFIRM)}).encode()),
            ("/cloister/v0/reference-values", REFERENCE.encode()),
        ):
            answer = http.post(path, content=body)
            assert variant(answer) == "PolicyEngine"
            assert "file" in answer.json()["detail"]


def test_reference_values_are_registered_and_queried(unpinned: RunningBroker) -> None:
    """Values in Trustee's message come back by id, and a policy finds them by query_reference_value."""
    payload = base64.b64encode(json.dumps({"mr_td": ["11" * 48], "svn": [1]}).encode()).decode()
    message = {"version": "0.1.0", "type": "sample", "payload": payload}
    body = 'input.submods.cpu0["ear.veraison.annotated-evidence"].tdx.mr_td in query_reference_value("mr_td")'
    policy = "package policy\nimport rego.v1\ndefault allow = false\nallow if {\n" + body + "\n}\n"
    with admin_http(unpinned) as http:
        http.post("/kbs/v0/resource-policy", json={"policy": b64url(policy)})
        assert variant(released(unpinned)) == "PolicyDeny"
        assert http.post("/kbs/v0/reference-value", json=message).status_code == 200
        assert http.get("/kbs/v0/reference-value/svn").json() == [1]
        assert http.get("/kbs/v0/reference-value/none").status_code == 401
        for change in ({"version": "9"}, {"type": "in-toto"}, {"payload": "e30="}, {"payload": "?"}):
            assert variant(http.post("/kbs/v0/reference-value", json={**message, **change})) == "SerdeError"
    assert released(unpinned).status_code == 200


def test_an_attestation_policy_lowers_the_tier_and_never_raises_it(unpinned: RunningBroker) -> None:
    """Contraindicated is a refusal at attestation, warning is a warning, affirming changes nothing."""

    def attest(hardware: str) -> dict[str, Any]:
        text = f"package policy\nimport rego.v1\nexecutables := 3\n{hardware}\nconfiguration := 2\n"
        with admin_http(unpinned) as http:
            body = {"policy_id": "default_cpu", "policy": b64url(text)}
            assert http.post("/kbs/v0/attestation-policy", json=body).status_code == 200
        with unpinned.http() as http:
            run = Run(unpinned, http)
            run.auth()
            answer: dict[str, Any] = run.attest(run.body()).json()
            return answer

    assert "attestation policy" in attest("hardware := 97")["detail"]
    assert "attestation policy" in attest('hardware := 2 if input.tdx.quote.body.mr_td == "00"')["detail"]
    token = attest('hardware := 2 if input.tdx.quote.body.mr_td == "%s"' % ("11" * 48))["token"]
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["submods"]["cpu0"]["ear.status"] == "warning"  # as the simulated platform is without it


def test_administration_needs_the_right_role(broker: RunningBroker) -> None:
    """An auditor may only read the audit log, an owner only keep keys, and others nothing."""
    requests = {
        "resources": ("GET", "/kbs/v0/resource"),
        "policies": ("POST", "/kbs/v0/resource-policy"),
        "audit": ("GET", "/cloister/v0/audit"),
    }
    may = {"admin": {"resources", "policies", "audit"}, "owner": {"resources"}, "auditor": {"audit"}}
    for role, permitted in may.items():
        with admin_http(broker, role) as http:
            for needs, (method, path) in requests.items():
                refused = http.request(method, path).text.find("errors/AdminAuth") >= 0
                assert refused == (needs not in permitted), (role, needs)
    with broker.http() as http:
        for method, path in requests.values():
            assert variant(http.request(method, path)) == "AdminAuth"


def test_audit_log_over_the_network(broker: RunningBroker) -> None:
    """An auditor reads entries after any number, in order."""
    with admin_http(broker, "auditor") as http:
        entries = http.get("/cloister/v0/audit").json()
        assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1))
        assert http.get(f"/cloister/v0/audit?after={len(entries) - 1}").json()[0] == entries[-1]
        assert http.get("/cloister/v0/audit?after=x").status_code == 404


def sample_body(run: Run, **primary: Any) -> dict[str, Any]:
    """What Trustee's sample attester sends."""
    runtime = {"additional-evidence": "", "nonce": run.nonce, "tee-pubkey": dict(run.key.public_jwk)}
    digest = hashlib.sha384(rfc8785.dumps(runtime)).digest()
    evidence = {"svn": "1", "report_data": base64.b64encode(digest).decode(), **primary}
    return {
        "runtime-data": {"nonce": run.nonce, "tee-pubkey": run.key.public_jwk},
        "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
    }


def test_sample_evidence_where_it_is_allowed(unpinned: RunningBroker) -> None:
    """It attests with tier none, gets nothing by the shipped policy, and only by one that names it."""
    with unpinned.http() as http:
        run = Run(unpinned, http)
        run.auth(tee="sample")
        token = run.attest(sample_body(run)).json()["token"]
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        assert claims["submods"]["cpu0"]["ear.status"] == "none"
        sample = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["sample"]
        assert (sample["launch_digest"], sample["debug"], sample["simulated"]) == ("abcde", False, True)
        assert variant(run.get("models/key/digits")) == "PolicyDeny"
        with unpinned.admin() as admin:
            admin.set_policy('permit (principal, action == Action::"release", resource)'
                             ' when { context.tee == "sample" };')  # fmt: skip
        assert run.key.decrypt(run.get("models/key/digits").json()) == SECRET


@pytest.mark.parametrize("primary", [{"report_data": "AAAA"}, {"svn": 1}, {"report_data": "?"}])
def test_spoiled_sample_evidence(unpinned: RunningBroker, primary: dict[str, Any]) -> None:
    """Sample evidence over other data, or of another form, is refused even where sample is allowed."""
    with unpinned.http() as http:
        run = Run(unpinned, http)
        run.auth(tee="sample")
        assert variant(run.attest(sample_body(run, **primary))) == "AttestationError"


def test_sample_needs_reference_values_that_accept_simulation(unpinned: RunningBroker) -> None:
    """The setting alone is not enough."""
    with unpinned.admin() as admin:
        admin.set_reference_values(REFERENCE.replace("true", "false"))
    with unpinned.http() as http:
        run = Run(unpinned, http)
        run.auth(tee="sample")
        assert "simulated" in run.attest(sample_body(run)).json()["detail"]


INIT_DATA = """version = "0.1.0"
algorithm = "sha384"

[data]
"aa.toml" = 'url = "https://kbs.example"'
"policy.rego" = 'package agent_policy'
"""


def with_init_data(
    broker: RunningBroker, body: str, *, form: str = "toml", bound: bytes | None = None
) -> Any:
    """Attest with init data; ``bound`` is what the hardware reports, by default its digest."""
    digest = hashlib.sha384(body.encode()).digest() if bound is None else bound
    with broker.http() as http:
        run = Run(broker, http)
        run.auth()
        message = {**run.body(mr_config_id=digest), "init-data": {"format": form, "body": body}}
        answer = run.attest(message)
        return answer, (run.get("models/key/digits") if answer.status_code == 200 else None)


def test_bound_init_data_is_there_for_policies(own_broker: RunningBroker) -> None:
    """Its digest is a claim, its entries are the principal's tags, and the token carries both."""
    own_broker.reference.write_text("allow_simulated = true\n[tdx]\nmr_td = ['%s']\n" % ("11" * 48))
    digest = hashlib.sha384(INIT_DATA.encode()).hexdigest()
    own_broker.policy.write_text(
        'permit (principal is Tee, action == Action::"release", resource) when {'
        f' context has init_data_digest && context.init_data_digest == "{digest}" &&'
        ' principal.hasTag("policy.rego") && principal.getTag("policy.rego") == "package agent_policy" };'
    )
    answer, resource = with_init_data(own_broker, INIT_DATA)
    assert resource.status_code == 200, resource.text
    claims = json.loads(base64.urlsafe_b64decode(answer.json()["token"].split(".")[1] + "=="))
    annotated = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    assert annotated["init_data"] == digest
    assert annotated["init_data_claims"]["aa.toml"] == {"url": "https://kbs.example"}
    with own_broker.http() as http:
        bearer = {"Authorization": f"Bearer {answer.json()['token']}"}
        assert http.get("/kbs/v0/resource/models/key/digits", headers=bearer).status_code == 200
    _, other = with_init_data(own_broker, INIT_DATA.replace("agent_policy", "another"))
    assert variant(other) == "PolicyDeny"


@pytest.mark.parametrize(
    ("body", "form", "names"),
    [
        ("x", "toml", "not TOML"),
        ("[]", "json", "not an object"),
        (INIT_DATA, "yaml", "format"),
        (INIT_DATA.replace("sha384", "md5"), "toml", "algorithm"),
        (INIT_DATA.replace("0.1.0", "0.2.0"), "toml", "version"),
        (INIT_DATA.replace("'package agent_policy'", "7"), "toml", "table of texts"),
    ],
)
def test_init_data_of_another_form(broker: RunningBroker, body: str, form: str, names: str) -> None:
    """What is not init data is refused with what is wrong."""
    answer, _ = with_init_data(broker, body, form=form)
    assert variant(answer) == "AttestationError"
    assert names in answer.json()["detail"]


def test_init_data_that_the_hardware_does_not_report(broker: RunningBroker) -> None:
    """Init data that was exchanged after launch is refused; so is a flipped bit of the digest."""
    digest = bytearray(hashlib.sha384(INIT_DATA.encode()).digest())
    digest[-1] ^= 1
    answer, _ = with_init_data(broker, INIT_DATA, bound=bytes(digest))
    assert "not what the TEE was started with" in answer.json()["detail"]


def test_tdx_event_log_is_taken_along(broker: RunningBroker) -> None:
    """A quote with an event log beside it attests as one without."""
    with broker.http() as http:
        run = Run(broker, http)
        run.auth()
        body = run.body()
        body["tee-evidence"]["primary_evidence"]["cc_eventlog"] = base64.b64encode(b"log").decode()
        assert run.attest(body).status_code == 200


def test_report_data_of_the_protocol() -> None:
    """Members beyond the typed struct's do not enter the hash."""
    jwk = TeePrivateKey.generate().public_jwk
    plain = TeePublicKey.from_jwk(jwk)
    more = TeePublicKey.from_jwk({**jwk, "kid": "x", "use": "enc"})
    assert report_data_for({"tee-pubkey": plain.jwk}) == report_data_for({"tee-pubkey": more.jwk})


CODES = {
    "SerdeError": ("POST", "/kbs/v0/auth", 401),
    "AttestationError": ("POST", "/kbs/v0/attest", 401),
    "TokenNotFound": ("GET", "/kbs/v0/resource/a/b/c", 401),
    "TokenVerifierError": ("GET", "/kbs/v0/resource/a/b/c", 401),
    "AdminAuth": ("POST", "/kbs/v0/resource/a/b/c", 401),
    "InvalidRequestPath": ("GET", "/kbs/v0/resource/a/b", 404),
    "PluginNotFound": ("GET", "/kbs/v0/nebula-ca/credential", 404),
}
BODIES = {
    "AttestationError": json.dumps(
        {"runtime-data": {"nonce": "", "tee-pubkey": {}}, "tee-evidence": {}}
    ).encode()
}


@pytest.mark.parametrize("name", CODES)
def test_golden_error_codes(broker: RunningBroker, name: str) -> None:
    """Each variant has its published type, one line of detail, exactly two members, and its status."""
    method, path, status = CODES[name]
    headers = {"Authorization": "Bearer e30.e30.e30"} if name == "TokenVerifierError" else {}
    with broker.http() as http:
        answer = http.request(method, path, content=BODIES.get(name, b""), headers=headers)
    assert (answer.status_code, variant(answer)) == (status, name)


def test_snp_evidence_in_the_guests_form(tmp_path: Path, platform: SimulatedPlatform) -> None:
    """A report as serde's JSON is attested as snp and released by measurement; a flipped bit is refused."""
    snp = SimulatedSnpPlatform.create(tmp_path / "snp", datetime.now(UTC))
    root = tmp_path / "snp-root.pem"
    root.write_bytes(snp.root.public_bytes(Encoding.PEM))
    collateral = tmp_path / "snp.json"
    collateral.write_bytes(msgspec.json.encode(snp.endorsements(datetime.now(UTC)).to_mapping()))
    broker = RunningBroker(
        tmp_path / "second", platform, collateral=str(collateral), simulated_root=str(root)
    )
    broker.policy.write_text(
        'permit (principal, action == Action::"release", resource) when {'
        f' context.tee == "snp" && context has measurement && context.measurement == "{"33" * 48}" }};'
    )
    broker.reference.write_text(
        f'allow_simulated = true\n[sev-snp]\nmeasurement = ["{"33" * 48}"]\ntcb_status = ["Committed"]\n'
    )
    broker.put("kbs:///models/key/digits", SECRET)
    try:
        with broker.http() as http:
            run = Run(broker, http)
            for flip in (True, False):
                run.auth(tee="snp")
                runtime = {
                    "additional-evidence": "",
                    "nonce": run.nonce,
                    "tee-pubkey": dict(run.key.public_jwk),
                }
                raw = snp.quote(report_data_for(runtime), measurement=bytes.fromhex("33" * 48))
                primary = render_trustee_evidence(raw)
                if flip:
                    primary["attestation_report"]["measurement"][0] ^= 1
                message = {
                    "runtime-data": {"nonce": run.nonce, "tee-pubkey": run.key.public_jwk},
                    "tee-evidence": {"primary_evidence": primary, "additional_evidence": ""},
                }
                answer = run.attest(message)
                assert (answer.status_code == 401) == flip, answer.text
            assert run.key.decrypt(run.get("models/key/digits").json()) == SECRET
            http.cookies.clear()
            token = answer.json()["token"]
            assert run.key.decrypt(run.get("models/key/digits", token).json()) == SECRET
    finally:
        broker.stop()

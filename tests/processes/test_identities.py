"""Who calls a protected server: tokens of two issuers, API keys, client certificates, TorchServe's tokens."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from joserfc.jwk import ECKey

import cloister
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated import SimulatedPlatform
from cloister.serve.access.api_keys import make_api_key
from cloister.serve.pack import pack_archive
from tests.fakes.authority import Authority
from tests.fakes.issuer import EC, RSA, LocalIssuer, make_token
from tests.fakes.sealed_service import TlsKey
from tests.processes.server import Server, free_port
from tests.processes.test_protected import World, make_world
from tests.serve.grpc.stubs import INFERENCE_SERVICE, Stub, failure, predictions

POLICY = """
@id("first-issuer")
permit (principal, action == Action::"predict", resource == Model::"own")
when { principal.kind == "jwt" && principal.tenant == "acme" };
@id("second-issuer")
permit (principal in Group::"readers", action == Action::"describe", resource)
when { principal.issuer == "https://second.example" };
@id("robots")
permit (principal in Group::"robots", action == Action::"predict", resource);
@id("inference-token")
permit (principal, action in [Action::"predict", Action::"explain"], resource)
when { principal.kind == "token" && principal.subject == "inference" };
@id("management-token")
permit (principal, action in [Action::"describe", Action::"manage"], resource)
when { principal.kind == "token" && principal.subject == "management" };
@id("watchers")
permit (principal, action == Action::"metrics", resource) when { principal.subject == "watch" };
@id("both")
permit (principal, action == Action::"explain", resource)
when { principal.kind == "jwt" && context.certificate == "uri:spiffe://example.org/job" };
"""
IDENTITIES = """
[[issuer]]
url = "{first}"
audience = "models"

[[issuer]]
url = "https://second.example"
audience = "models"
jwks_file = "{jwks}"
algorithms = ["RS256"]
tenant = "second"
groups_claim = "realm_access.roles"
groups = {{ reader = "readers" }}

[[certificate]]
uri = "spiffe://example.org/job"
name = "job"
groups = ["robots"]
"""
SITE = Authority()
JOB = x509.UniformResourceIdentifier("spiffe://example.org/job")


@dataclass
class Known:
    """A running server, and what its callers need."""

    world: World
    server: Server
    issuer: LocalIssuer
    watch_key: str
    tokens: Mapping[str, str]
    ports: Mapping[str, int]

    def url(self, port: str = "https") -> str:
        """Where a port is."""
        return f"https://127.0.0.1:{self.ports[port]}"

    def tls(self, *, certificate: str = "", key: bytes | str = b"", port: str = "https") -> httpx.Client:
        """A caller over TLS; that the key is the attested one is tested elsewhere."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate:
            file = self.world.folder / "client.pem"
            file.write_text(certificate)
            context.load_cert_chain(file)
        return httpx.Client(base_url=self.url(port), verify=context, headers=bearer(key), timeout=30)

    def sealed(self, key: bytes | str = b"") -> httpx.Client:
        """A caller whose requests and credential travel sealed."""
        transport = cloister.transport(
            self.url(),
            reference_values=ReferenceValues.from_toml(self.world.reference_values(self.world.flags)),
            roots=[SimulatedPlatform.load(self.world.folder / "platform").root],
        )
        return httpx.Client(transport=transport, base_url=self.url(), headers=bearer(key), timeout=30)


def bearer(key: bytes | str) -> dict[str, str]:
    """One header, or none."""
    text = key.decode() if isinstance(key, bytes) else key
    return {"authorization": f"Bearer {text}"} if text else {}


@pytest.fixture(scope="session", params=[1, 2], ids=["core", "frontends"])
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    """A server that knows callers of every kind, without frontend processes and with them."""
    folder = tmp_path_factory.mktemp("known")
    issuer = LocalIssuer()
    jwks, keys = folder / "second.json", folder / "api-keys.jsonl"
    jwks.write_text(json.dumps({"keys": [RSA.as_dict(private=False)]}))
    (folder / "identities.toml").write_text(IDENTITIES.format(first=issuer.url, jwks=jwks))
    (folder / "requests.cedar").write_text(POLICY)
    (folder / "authority.pem").write_bytes(SITE.pem)
    watch = make_api_key(keys, "watch", now=datetime.now(UTC))
    ports = {name: free_port() for name in ("management", "metrics", "grpc", "grpc_management")}
    extra = {
        "serve.frontends": request.param,
        "serve.access_policy": str(folder / "requests.cedar"),
        "serve.identities": str(folder / "identities.toml"),
        "serve.api_keys": str(keys),
        "serve.client_ca": str(folder / "authority.pem"),
        "serve.key_file": str(folder / "key_file.json"),
        "serve.decision_log": str(folder / "decisions.jsonl"),
        "serve.decision_log_key": str(folder / "decisions.key"),
        **{f"serve.{name}_port": port for name, port in ports.items()},
    }
    with make_world(folder, **extra) as world:
        ports |= {"https": world.https_port, "http": world.http_port}
        with Server(world.flags) as server:
            server.wait_ready()
            tokens = {
                name: entry["key"]
                for name, entry in json.loads((folder / "key_file.json").read_text()).items()
            }
            yield Known(world, server, issuer, watch, tokens, ports)
    issuer.close()


def second(**changes: Any) -> bytes:
    """A token of the issuer whose keys are in a file."""
    claims = {"realm_access": {"roles": ["reader", "other"]}, **changes}
    return make_token("https://second.example", RSA, "RS256", **claims)


def predict(http: httpx.Client, **options: Any) -> int:
    """The status of one prediction."""
    return http.post("/predictions/own", content=b"x", **options).status_code


@pytest.mark.parametrize("way", ["tls", "sealed"])
def test_a_refusal_is_in_the_log_once(known: Known, way: str) -> None:
    """However many parts of the server look at a request, the log has one line for its refusal."""
    log = known.world.flags["serve.decision_log"]
    opened = known.tls if way == "tls" else known.sealed
    with opened(key=second(sub=f"refused-{way}")) as http:
        assert predict(http) == 403
    deadline = time.monotonic() + 20
    while not (found := _entries(log, f"refused-{way}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [(entry["kind"], entry["claims"]["count"]) for entry in found] == [("refused", 1)]


def _entries(log: str, subject: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path(log).read_text().splitlines() if subject in line]
    return [line["entry"] for line in lines if "entry" in line]


@pytest.mark.parametrize("way", ["tls", "sealed"])
def test_two_issuers(known: Known, way: str) -> None:
    """Each issuer's tokens let in to what the policy permits them, in the open TLS and under seal."""
    opened = known.tls if way == "tls" else known.sealed
    with opened(key=known.issuer.token()) as http:
        assert predict(http) == 200
        assert http.get("/models").status_code == 403
    with opened(key=second()) as http:
        assert http.get("/models").status_code == 200
        assert predict(http) == 403
    with opened(key=second(realm_access={"roles": ["readers"]})) as http:
        assert http.get("/models").status_code == 403
    with opened(key=known.issuer.token(tenant="other")) as http:
        assert predict(http) == 403


@pytest.mark.parametrize("way", ["tls", "sealed"])
def test_tokens_that_are_none(known: Known, way: str) -> None:
    """Expired, for others, of another issuer's key, of a wrong algorithm: 401, and not shown again."""
    opened = known.tls if way == "tls" else known.sealed
    stranger = ECKey.generate_key("P-256", {"kid": "ec"})
    wrong = [
        known.issuer.token(exp=1),
        known.issuer.token(aud="others"),
        known.issuer.token(stranger),
        known.issuer.token(iss="https://second.example"),
        make_token("https://second.example", RSA, "PS256"),
        make_token("https://nobody.example"),
        b"a.b.c",
    ]
    for token in wrong:
        with opened(key=token) as http:
            refused = http.post("/predictions/own", content=b"x")
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert token.decode() not in refused.text


def test_rotation_of_an_issuer(known: Known) -> None:
    """A new key of an issuer is found within seconds, and a withdrawn one goes with it."""
    fresh = ECKey.generate_key("P-256", {"kid": "fresh"})
    token = known.issuer.token(fresh)
    with known.sealed(token) as http:
        assert predict(http) == 401
        known.issuer.keys = [fresh]
        deadline = time.monotonic() + 20
        while predict(http) != 200:
            assert time.monotonic() < deadline
            time.sleep(0.3)
    with known.sealed(known.issuer.token()) as http:
        assert predict(http) == 401
        known.issuer.keys = [EC]
        deadline = time.monotonic() + 20
        while predict(http) != 200:
            assert time.monotonic() < deadline
            time.sleep(0.3)


def test_client_certificates(known: Known) -> None:
    """A certificate of the authority is an identity over TLS; one that is none fails its handshake."""
    with known.tls(certificate=SITE.issue("j", JOB)) as http:
        assert [predict(http) for _ in range(3)] == [200] * 3
        assert http.get("/models").status_code == 403
    with known.tls() as http:  # on the same bytes, another connection is another caller
        assert [predict(http) for _ in range(3)] == [403] * 3
    with known.tls(certificate=SITE.issue("somebody")) as http:
        assert predict(http) == 403
    with known.tls(certificate=SITE.issue("j", JOB), key="clk_wrong") as http:
        assert predict(http) == 401
    for wrong in (
        Authority().issue("j", JOB),
        SITE.issue("j", JOB, usage=x509.ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        with known.tls(certificate=wrong) as http, pytest.raises(httpx.TransportError):
            predict(http)


def test_certificates_of_many_connections(known: Known) -> None:
    """Connections with and without a certificate take turns with the same bytes: each is itself."""
    with known.tls(certificate=SITE.issue("j", JOB)) as job, known.tls() as nobody:
        for _ in range(20):
            assert (predict(job), predict(nobody)) == (200, 403)


def test_certificates_count_for_nothing_inside_a_seal(known: Known) -> None:
    """The outer connection's certificate lets nobody in: only what is inside counts."""
    with known.sealed() as http:
        assert predict(http) == 403
        channel = http._transport._channel  # type: ignore[attr-defined]
        file = known.world.folder / "client.pem"
        file.write_text(SITE.issue("j", JOB))
        context = channel.verified.tls
        context.load_cert_chain(file)
        channel.http.close()
        object.__setattr__(channel, "http", httpx.Client(base_url=known.url(), verify=context))
        outside = channel.http.post("/predictions/own", content=b"x")
        assert (outside.status_code, predict(http)) == (200, 403)


def test_a_credential_and_a_certificate(known: Known) -> None:
    """A policy can ask for both; a token that is bound to a certificate is good with that one only."""
    job = SITE.issue("j", JOB)
    with known.tls(certificate=job, key=known.issuer.token()) as http:
        assert http.post("/explanations/own", content=b"x").status_code != 403
    with known.tls(key=known.issuer.token()) as http:
        assert http.post("/explanations/own", content=b"x").status_code == 403
    bound = known.issuer.token(cnf={"x5t#S256": "AAAA"})
    for opened in (known.tls(certificate=job, key=bound), known.tls(key=bound), known.sealed(bound)):
        with opened as http:
            assert predict(http) == 401


def test_torchserves_tokens(known: Known) -> None:
    """The tokens of the key file are callers whom the policy knows, at every way in."""
    inference, management = known.tokens["inference"], known.tokens["management"]
    for opened in (known.tls, known.sealed):
        with opened(key=inference) as http:
            assert (predict(http), http.get("/models").status_code) == (200, 403)
        with opened(key=management) as http:
            assert (predict(http), http.get("/models").status_code) == (403, 200)
        with opened(key=known.tokens["API"]) as http:
            assert predict(http) == 401
    with known.tls(key=management, port="management") as http:
        assert http.get("/models/own").status_code == 200
    with known.tls(key=inference, port="management") as http:
        assert http.get("/models/own").status_code == 400


def test_metrics(known: Known) -> None:
    """Who may see metrics is for the policy too, at both ports."""
    for port in ("https", "metrics"):
        with known.tls(key=known.watch_key, port=port) as http:
            assert http.get("/metrics").status_code == 200
        with known.tls(port=port) as http:
            assert http.get("/metrics").status_code == 403


@pytest.mark.parametrize("frontends", [1, 2])
def test_settings_that_require_a_certificate(tmp_path: Path, frontends: int) -> None:
    """Where certificates are required nobody connects without one, over HTTPS or gRPC."""
    key = TlsKey.make(tmp_path / "tls")
    (tmp_path / "authority.pem").write_bytes(SITE.pem)
    (tmp_path / "requests.cedar").write_text(
        'permit (principal, action == Action::"predict", resource) when { principal.subject == "job" };'
    )
    (tmp_path / "identities.toml").write_text(
        '[[certificate]]\nuri = "spiffe://example.org/job"\nname = "job"\n'
    )
    (tmp_path / "store").mkdir()
    source = tmp_path / "echo.py"
    source.write_text("def handle(data, context):\n    return data and [d.get('body') for d in data]\n")
    pack_archive(tmp_path / "store" / "echo.mar", name="echo", version="1.0", handler=source)
    port, grpc_port = free_port(), free_port()
    flags = {
        "serve.mode": "open",
        "serve.inference_address": f"https://127.0.0.1:{port}",
        "serve.frontends": frontends,
        "serve.grpc_port": grpc_port,
        "serve.grpc_tls": True,
        "serve.certificate": str(key.folder / "tls.pem"),
        "serve.private_key": str(key.folder / "tls.key"),
        "serve.access_policy": str(tmp_path / "requests.cedar"),
        "serve.identities": str(tmp_path / "identities.toml"),
        "serve.client_ca": str(tmp_path / "authority.pem"),
        "serve.client_certificates": "required",
        "serve.model_store": str(tmp_path / "store"),
        "serve.load_models": ["echo.mar"],
    }
    with Server(flags) as server:
        server.wait_ready()
        answers = {}
        for name, certificate in (("job", SITE.issue("j", JOB)), ("other", SITE.issue("o")), ("none", "")):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if certificate:
                (tmp_path / "client.pem").write_text(certificate)
                context.load_cert_chain(tmp_path / "client.pem")
            with httpx.Client(verify=context, base_url=f"https://127.0.0.1:{port}") as http:
                try:
                    answers[name] = http.post("/predictions/echo", content=b"x").status_code
                except httpx.TransportError:
                    answers[name] = 0
            pair = (certificate.encode(), certificate.encode()) if certificate else (None, None)
            credentials = grpc.ssl_channel_credentials((key.folder / "tls.pem").read_bytes(), *reversed(pair))
            options = (("grpc.ssl_target_name_override", "cloister"),)
            with grpc.secure_channel(f"127.0.0.1:{grpc_port}", credentials, options) as channel:
                call = Stub(channel, INFERENCE_SERVICE).Predictions
                if name == "job":
                    assert call(predictions("echo", body=b"x"), timeout=10).prediction == b"x"
                else:
                    code, _ = failure(call, predictions("echo", body=b"x"), timeout=10)
                    refused = (
                        grpc.StatusCode.PERMISSION_DENIED if certificate else grpc.StatusCode.UNAVAILABLE
                    )
                    assert code == refused
        assert answers == {"job": 200, "other": 403, "none": 0}

"""JWTs of a real local issuer with real keys: what is believed, and everything that is not."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from cloister.errors import (
    BadSignature,
    CloisterError,
    ConfigError,
    MalformedInput,
    StaleEvidence,
    TransportError,
)
from cloister.serve.access.oidc import Issuer, IssuerKeys, verify_jwt

EC = ECKey.generate_key("P-256", {"kid": "ec", "alg": "ES256", "use": "sig"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
STRANGER = ECKey.generate_key("P-256", {"kid": "ec"})


class LocalIssuer:
    """Discovery and keys over HTTP on loopback."""

    def __init__(self) -> None:
        self.keys: list[Any] = [EC, RSA, ED]
        self.asked: list[str] = []
        self.discovery: dict[str, Any] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                body = issuer.answer(self.path)
                self.send_response(200 if body else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.discovery = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, path: str) -> bytes:
        """The document at this path."""
        if path == "/keys":
            return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys]}).encode()
        return json.dumps(self.discovery).encode() if path.startswith("/.well-known/") else b""


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    """A running issuer."""
    local = LocalIssuer()
    yield local
    local.server.shutdown()
    local.server.server_close()


def token(issuer: LocalIssuer, key: Any = EC, alg: str = "ES256", **changes: Any) -> bytes:
    """A token as this issuer makes it, with changes; None leaves a claim out."""
    now = int(time.time())
    claims = {
        "iss": issuer.url,
        "aud": ["models", "other"],
        "sub": "alice",
        "iat": now,
        "exp": now + 60,
        "tenant": "acme",
        "groups": ["radiology"],
        "scope": "predict explain",
    } | changes
    header = {"alg": alg, "kid": key.kid}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(header, claims, key, algorithms=[alg]).encode()


def judge(issuer: LocalIssuer, raw: bytes) -> Any:
    """The caller of a token, with keys fetched now."""
    named = Issuer(url=issuer.url, audience="models")
    return verify_jwt(raw, named, IssuerKeys(named), time.time())[0]


@pytest.mark.parametrize(("key", "alg"), [(EC, "ES256"), (RSA, "RS256"), (RSA, "PS256"), (ED, "EdDSA")])
def test_caller(issuer: LocalIssuer, key: Any, alg: str) -> None:
    """Subject, issuer, tenant, groups and scopes come out of a good token."""
    caller = judge(issuer, token(issuer, key, alg))
    assert caller.name == f"jwt:{issuer.url}#alice"
    assert (caller.tenant, caller.groups, caller.scopes) == ("acme", ("radiology",), ("predict", "explain"))
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"iss": "https://evil.example"}, BadSignature),
        ({"aud": "others"}, BadSignature),
        ({"aud": None}, BadSignature),
        ({"exp": 1}, StaleEvidence),
        ({"exp": None}, StaleEvidence),
        ({"exp": "never"}, MalformedInput),
        ({"exp": True}, MalformedInput),
        ({"nbf": time.time() + 3600}, StaleEvidence),
        ({"iat": time.time() + 3600}, StaleEvidence),
        ({"sub": None}, MalformedInput),
        ({"sub": 7}, MalformedInput),
    ],
)
def test_claims(issuer: LocalIssuer, changes: dict[str, Any], error: type[CloisterError]) -> None:
    """Each claim is checked."""
    with pytest.raises(error):
        judge(issuer, token(issuer, **changes))


def test_forged(issuer: LocalIssuer) -> None:
    """Another key of the same name, no signature, a changed claim, a public key used as a secret: refused."""
    genuine = token(issuer)
    head, body, signature = genuine.split(b".")
    changed = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + b"==").replace(b"alice", b"mallory"))
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=")
    secret = OctKey.import_key(json.dumps(EC.as_dict(private=False)))
    confused = jwt.encode({"alg": "HS256", "kid": "ec"}, {"sub": "m"}, secret, algorithms=["HS256"]).encode()
    forged = [
        token(issuer, STRANGER),
        head + b"." + changed.rstrip(b"=") + b"." + signature,
        none + b"." + body + b".",
        confused,
        genuine[:-4] + b"AAAA",
    ]
    for raw in forged:
        with pytest.raises((BadSignature, MalformedInput)):
            judge(issuer, raw)


def test_a_key_serves_its_own_algorithm(issuer: LocalIssuer) -> None:
    """A token may not choose an algorithm that its key is not meant for."""
    issuer.keys = [ECKey.import_key({**EC.as_dict(private=False), "use": "enc"}), RSA]
    with pytest.raises(BadSignature):
        judge(issuer, token(issuer))


def test_rotation(issuer: LocalIssuer) -> None:
    """A new key is fetched when a token names it, but not for every unknown name."""
    named = Issuer(url=issuer.url, audience="models")
    now = [0.0]
    keys = IssuerKeys(named, clock=lambda: now[0])
    verify_jwt(token(issuer), named, keys, time.time())
    fresh = ECKey.generate_key("P-256", {"kid": "fresh"})
    issuer.keys = [fresh]
    for _ in range(5):
        with pytest.raises(BadSignature):
            verify_jwt(token(issuer, fresh), named, keys, time.time())
    assert issuer.asked.count("/keys") == 1
    now[0] = 10.0
    assert verify_jwt(token(issuer, fresh), named, keys, time.time())[0].subject == "alice"
    with pytest.raises(BadSignature):
        verify_jwt(token(issuer), named, keys, time.time())


def test_an_issuer_that_is_away(issuer: LocalIssuer) -> None:
    """Known keys go on being used; without any the token cannot be judged."""
    named = Issuer(url=issuer.url, audience="models")
    now = [0.0]
    keys = IssuerKeys(named, clock=lambda: now[0])
    verify_jwt(token(issuer), named, keys, time.time())
    issuer.server.shutdown()
    issuer.server.server_close()
    now[0] = 4000.0
    assert verify_jwt(token(issuer), named, keys, time.time())[0].subject == "alice"
    with pytest.raises(TransportError):
        verify_jwt(token(issuer), named, IssuerKeys(named), time.time())


def test_discovery_of_another_issuer(issuer: LocalIssuer) -> None:
    """A discovery document speaks for its own issuer only, and names keys over https."""
    issuer.discovery["issuer"] = "https://evil.example"
    with pytest.raises(MalformedInput):
        judge(issuer, token(issuer))
    issuer.discovery |= {"issuer": issuer.url, "jwks_uri": "http://evil.example/keys"}
    with pytest.raises(ConfigError):
        judge(issuer, token(issuer))


def test_private_and_symmetric_keys_are_left_out(issuer: LocalIssuer) -> None:
    """A set that leaks private keys or holds secrets is not believed for those."""
    issuer.answer = lambda path: (  # type: ignore[method-assign]
        json.dumps({"keys": [EC.as_dict(private=True)]}).encode()
        if path == "/keys"
        else json.dumps(issuer.discovery).encode()
    )
    with pytest.raises((BadSignature, MalformedInput)):
        judge(issuer, token(issuer))


@given(st.binary(max_size=300))
def test_garbage(raw: bytes) -> None:
    """Arbitrary bytes are no token, and nobody is asked."""
    named = Issuer(url="https://nobody.example", audience="a")

    def unasked(url: str) -> bytes:
        raise AssertionError(url)

    with pytest.raises(MalformedInput):
        verify_jwt(raw, named, IssuerKeys(named, fetch=unasked), 0.0)

"""JWTs of a real local issuer with real keys: what is believed, and everything that is not."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet, OctKey

from cloister.crypto.client_certificates import read_client_certificate
from cloister.errors import (
    BadSignature,
    CloisterError,
    ConfigError,
    MalformedInput,
    StaleEvidence,
    TransportError,
)
from cloister.serve.access.issuer_keys import IssuerKeys
from cloister.serve.access.issuers import Issuer
from cloister.serve.access.tokens import read_token, verify_token
from tests.fakes.authority import Authority
from tests.fakes.issuer import EC, ED, RSA, LocalIssuer

STRANGER = ECKey.generate_key("P-256", {"kid": "ec"})


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    """A running issuer."""
    local = LocalIssuer()
    yield local
    local.close()


def token(issuer: LocalIssuer, key: Any = EC, alg: str = "ES256", **changes: Any) -> bytes:
    """A token as this issuer makes it, with changes; None leaves a claim out."""
    return issuer.token(key, alg, **changes)


def verify(raw: bytes, issuer: Issuer, keys: IssuerKeys, now_s: float, **more: Any) -> Any:
    """The caller of a token, and until when."""
    return verify_token(read_token(raw), issuer, keys, now_s, **more)


def judge(issuer: LocalIssuer, raw: bytes, *, shown: bytes = b"", **fields: Any) -> Any:
    """The caller of a token, with keys fetched now."""
    named = Issuer(**({"url": issuer.url, "audience": "models"} | fields))
    named.check()
    certificate = read_client_certificate(shown) if shown else None
    return verify(raw, named, IssuerKeys(named), time.time(), certificate=certificate)[0]


@pytest.mark.parametrize(
    ("key", "alg"), [(EC, "ES256"), (RSA, "RS256"), (RSA, "PS256"), (ED, "EdDSA"), (ED, "Ed25519")]
)
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
        ({"exp": float("nan")}, MalformedInput),
        ({"exp": float("inf")}, MalformedInput),
        ({"exp": 10**400}, MalformedInput),
        ({"nbf": float("nan")}, MalformedInput),
        ({"iat": -1}, MalformedInput),
        ({"groups": ["x"] * 1001}, MalformedInput),
        ({"cnf": {"jkt": "x"}}, BadSignature),
        ({"cnf": {"x5t#S256": "x"}}, BadSignature),
        ({"cnf": []}, BadSignature),
        ({"sub": "\ud800"}, MalformedInput),
        ({"groups": ["a", "\udfff"]}, MalformedInput),
        ({"deep": {"\ud800": 1}}, MalformedInput),
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
    verify(token(issuer), named, keys, time.time())
    fresh = ECKey.generate_key("P-256", {"kid": "fresh"})
    issuer.keys = [fresh]
    for _ in range(5):
        with pytest.raises(BadSignature):
            verify(token(issuer, fresh), named, keys, time.time())
    assert issuer.asked.count("/keys") == 1
    now[0] = 10.0
    assert verify(token(issuer, fresh), named, keys, time.time())[0].subject == "alice"
    with pytest.raises(BadSignature):
        verify(token(issuer), named, keys, time.time())


def test_an_issuer_that_is_away(issuer: LocalIssuer) -> None:
    """Known keys go on being used; without any the token cannot be judged."""
    named = Issuer(url=issuer.url, audience="models")
    now = [0.0]
    keys = IssuerKeys(named, clock=lambda: now[0])
    verify(token(issuer), named, keys, time.time())
    issuer.server.shutdown()
    issuer.server.server_close()
    now[0] = 4000.0
    assert verify(token(issuer), named, keys, time.time())[0].subject == "alice"
    now[0] = 90_000.0
    with pytest.raises(TransportError, match="too old"):
        verify(token(issuer), named, keys, time.time())
    with pytest.raises(TransportError):
        verify(token(issuer), named, IssuerKeys(named), time.time())


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
        verify(raw, named, IssuerKeys(named, fetch=unasked), 0.0)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    )
)
def test_any_claims(claims: Any) -> None:
    """Whatever a genuine issuer signs makes a caller or one of the declared errors."""
    named = Issuer(url="https://x", audience="models", jwks_file="x")
    keys = IssuerKeys(named)
    keys._keys = KeySet([EC])
    body = {"iss": "https://x", "aud": "models", "sub": "a", "exp": time.time() + 60}
    for payload in (claims, {**body, **claims} if isinstance(claims, dict) else body | {"exp": claims}):
        raw = jws.serialize_compact({"alg": "ES256"}, json.dumps(payload), EC, algorithms=["ES256"]).encode()
        with contextlib.suppress(MalformedInput, BadSignature, StaleEvidence):
            verify(raw, named, keys, time.time())


def test_algorithms_of_an_issuer(issuer: LocalIssuer) -> None:
    """An issuer's tokens may be narrowed to some algorithms; nothing symmetric can be named."""
    assert judge(issuer, token(issuer), algorithms=("ES256",)).subject == "alice"
    with pytest.raises(MalformedInput, match="ES256 only"):
        judge(issuer, token(issuer, RSA, "RS256"), algorithms=("ES256",))
    for wrong in (("HS256",), ("none",), ()):
        with pytest.raises(ConfigError):
            judge(issuer, token(issuer), algorithms=wrong)


def test_claims_become_a_caller(issuer: LocalIssuer) -> None:
    """Tenant, groups and subject come from the claims that the issuer is said to use."""
    raw = token(
        issuer, realm={"roles": ["r-admin", "other"]}, scope=None, scp=["a", "b"], **{"https://x.y/t": "t1"}
    )
    caller = judge(
        issuer,
        raw,
        tenant_claim="https://x.y/t",
        groups_claim="realm.roles",
        groups={"r-admin": "operators"},
        subject_claim="tenant",
    )
    assert (caller.subject, caller.tenant, caller.groups) == ("acme", "t1", ("operators",))
    assert caller.scopes == ("a", "b")
    assert judge(issuer, token(issuer), tenant="fixed").tenant == "fixed"
    assert judge(issuer, token(issuer), groups_claim="sub.deeper").groups == ()


def test_clock_skew(issuer: LocalIssuer) -> None:
    """A clock may be off by as much as is said, either way, and not by more."""
    now = time.time()
    for changes in ({"exp": now - 20}, {"nbf": now + 20}, {"iat": now + 20}):
        assert judge(issuer, token(issuer, **changes)).subject == "alice"
        with pytest.raises(StaleEvidence):
            judge(issuer, token(issuer, **changes), clock_skew_s=5)
    with pytest.raises(ConfigError):
        judge(issuer, token(issuer), clock_skew_s=3600)


def test_bound_to_a_certificate(issuer: LocalIssuer) -> None:
    """A token that is bound to a client certificate is good with that one only, and not without."""
    certificate, other = (x509.load_pem_x509_certificate(Authority().issue("job").encode()) for _ in range(2))
    thumbprint = base64.urlsafe_b64encode(certificate.fingerprint(hashes.SHA256())).rstrip(b"=").decode()
    raw = token(issuer, cnf={"x5t#S256": thumbprint})
    assert judge(issuer, raw, shown=certificate.public_bytes(Encoding.DER)).subject == "alice"
    with pytest.raises(BadSignature, match="another client certificate"):
        judge(issuer, raw, shown=other.public_bytes(Encoding.DER))
    with pytest.raises(BadSignature, match="none counts"):
        judge(issuer, raw)
    mixed = token(issuer, cnf={"x5t#S256": thumbprint, "jkt": "x"})
    with pytest.raises(BadSignature):
        judge(issuer, mixed, shown=certificate.public_bytes(Encoding.DER))


def test_claims_that_are_no_object(issuer: LocalIssuer) -> None:
    """A signed text is no token."""
    for payload in (b"[]", b'"iss"', b"7", b"null", b"{"):
        raw = jws.serialize_compact({"alg": "ES256", "kid": "ec"}, payload, EC, algorithms=["ES256"]).encode()
        with pytest.raises(MalformedInput):
            judge(issuer, raw)

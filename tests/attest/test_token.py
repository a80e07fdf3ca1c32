"""The verdict as a token."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from cloister.attest import AppraisalDenied, AttestationResult, ReferenceValues, appraise
from cloister.attest.composite import CompositeResult
from cloister.attest.dcap import TdxClaims
from cloister.attest.token import EAT_PROFILE, issue_ear, verify_ear
from cloister.attest.token_keys import EarTrust
from cloister.errors import (
    BadSignature,
    ConfigError,
    EndorsementMismatch,
    MalformedInput,
    StaleEvidence,
    UntrustedRoot,
    VerificationError,
)
from tests.attest.conftest import MR_TD, NOW
from tests.attest.test_token_keys import A_MIDDLE, A_ROOT, MIDDLE, certificate, x5c

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
TEE_KEY = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "AA", "y": "AA"}


@pytest.fixture
def result(claims: TdxClaims, reference_values: ReferenceValues) -> AttestationResult:
    """A verdict."""
    return appraise(claims, reference_values, NOW)


@pytest.fixture
def token(result: AttestationResult) -> str:
    """A token for it."""
    return issue_ear(result, tee_pubkey=TEE_KEY, key=KEY, now=NOW, ttl_s=300)


def test_claims(token: str, claims: TdxClaims) -> None:
    """A token carries tier, TEE key, evidence and profile where a Trustee service has them."""
    found = verify_ear(token, [OTHER.public_key(), KEY.public_key()], NOW)
    submod = found["submods"]["cpu0"]
    evidence = submod["ear.veraison.annotated-evidence"]
    assert (found["eat_profile"], submod["ear.status"]) == (EAT_PROFILE, "warning")
    assert evidence["runtime_data_claims"]["tee-pubkey"] == TEE_KEY
    assert evidence["tdx"]["mr_td"] == claims.mr_td.hex()
    assert evidence["simulated"] is True
    assert found["exp"] - found["iat"] == 300


def test_header_has_only_the_public_key(token: str) -> None:
    """The header's key is the public part: no private member is in a token."""
    encoded = token.split(".")[0]
    header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    assert (header["alg"], set(header["jwk"]) & {"d"}) == ("ES256", set())


def test_another_key(token: str) -> None:
    """A token of a verifier that is not trusted is refused, although it brings its key along."""
    for keys in ([OTHER.public_key()], []):
        with pytest.raises(BadSignature):
            verify_ear(token, keys, NOW)


def test_times(token: str) -> None:
    """A token lives from its issue to its expiry."""
    keys = [KEY.public_key()]
    verify_ear(token, keys, NOW + timedelta(seconds=299))
    for moment in (NOW + timedelta(seconds=300), NOW - timedelta(seconds=1)):
        with pytest.raises(StaleEvidence):
            verify_ear(token, keys, moment)


def test_changed_tokens(token: str) -> None:
    """A changed character anywhere makes a token malformed or its signature bad."""
    for position in range(0, len(token), 29):
        other = "A" if token[position] != "A" else "B"
        with pytest.raises((MalformedInput, VerificationError)):
            verify_ear(token[:position] + other + token[position + 1 :], [KEY.public_key()], NOW)


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", None, 7])
def test_other_algorithms(token: str, algorithm: object) -> None:
    """Only ES256 and RS256 are taken, whatever the header asks for."""
    header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).rstrip(b"=").decode()
    with pytest.raises(MalformedInput):
        verify_ear(".".join([header, *token.split(".")[1:]]), [KEY.public_key()], NOW)


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "é.é.é", "..", "x" * 300_000])
def test_no_tokens(text: str) -> None:
    """What is not a compact JWT is malformed."""
    with pytest.raises(MalformedInput):
        verify_ear(text, [KEY.public_key()], NOW)


@given(st.text(alphabet=st.sampled_from("eyJhbGciOiJ.{}-_é"), max_size=60))
def test_any_text_raises_only_declared_errors(text: str) -> None:
    """Any text is refused with a declared error."""
    with pytest.raises((MalformedInput, VerificationError)):
        verify_ear(text, [KEY.public_key()], NOW)


def claims_of(token: str) -> dict[str, Any]:
    """A token's claims, unverified."""
    encoded = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    return found


def signed(claims: Any, *, key: Any = KEY, alg: str = "ES256", **header: Any) -> str:
    """A token with any claims."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    kind = ECKey if alg == "ES256" else RSAKey
    return jwt.encode({"alg": alg, **header}, claims, kind.import_key(pem), algorithms=[alg])


def trustee_claims() -> dict[str, Any]:
    """The claims of a token of a Trustee service, in the form of its documentation's example."""
    vector = dict.fromkeys(["instance-identity", "file-system", "runtime-opaque", "storage-opaque"], 0)
    issued = int(NOW.timestamp())
    return {
        "eat_profile": EAT_PROFILE,
        "iat": issued,
        "exp": issued + 300,
        "ear.verifier-id": {
            "developer": "https://confidentialcontainers.org",
            "build": "attestation-service 0.1.0",
        },
        "submods": {
            "cpu0": {
                "ear.status": "contraindicated",
                "ear.trustworthiness-vector": {
                    **vector,
                    "configuration": 36,
                    "executables": 33,
                    "hardware": 97,
                    "sourced-data": 0,
                },
                "ear.appraisal-policy-id": "default",
                "ear.veraison.annotated-evidence": {"report_data": "", "runtime_data_claims": None},
            }
        },
    }


def test_vector_and_policy(token: str) -> None:
    """A token's trust vector has all eight claims, and its tier is that of the worst."""
    submod = claims_of(token)["submods"]["cpu0"]
    assert submod["ear.trustworthiness-vector"] == {
        "instance-identity": 0,
        "configuration": 2,
        "executables": 3,
        "file-system": 0,
        "hardware": 32,
        "runtime-opaque": 32,
        "storage-opaque": 0,
        "sourced-data": 0,
    }
    assert submod["ear.appraisal-policy-id"] == "default_cpu"


def test_denied_verdict(claims: TdxClaims) -> None:
    """A denied verdict makes a token that is contraindicated, and verifies as such."""
    with pytest.raises(AppraisalDenied) as caught:
        appraise(claims, ReferenceValues.from_mapping({"tdx": {"mr_td": [MR_TD.hex()]}}), NOW)
    token = issue_ear(caught.value.result, tee_pubkey=None, key=KEY, now=NOW)
    submod = verify_ear(token, [KEY.public_key()], NOW)["submods"]["cpu0"]
    assert submod["ear.status"] == "contraindicated"
    assert submod["ear.trustworthiness-vector"]["hardware"] == 97
    assert "runtime_data_claims" not in submod["ear.veraison.annotated-evidence"]


def test_composite_verdict(result: AttestationResult) -> None:
    """Each part of a composite verdict is a submod of its own; the TEE key is the CPU's."""
    parts = {"cpu0": result, "gpu0": result}
    composite = CompositeResult(result.tier, parts, result.checks, NOW)
    token = issue_ear(composite, tee_pubkey=TEE_KEY, key=KEY, now=NOW)
    submods = verify_ear(token, [KEY.public_key()], NOW)["submods"]
    assert submods["gpu0"]["ear.appraisal-policy-id"] == "default_gpu"
    assert "runtime_data_claims" in submods["cpu0"]["ear.veraison.annotated-evidence"]
    assert "runtime_data_claims" not in submods["gpu0"]["ear.veraison.annotated-evidence"]


def test_token_of_trustee_by_key_and_by_key_set() -> None:
    """A Trustee service's token verifies by its key, and by the JWK set that it publishes."""
    public = ECKey.import_key(KEY.public_key()).as_dict(private=False)
    token = signed(trustee_claims(), jwk=public)
    by_set = EarTrust.of(jwk_sets=[{"keys": [{**public, "alg": "ES256"}]}])
    for trust in ([KEY.public_key()], by_set):
        assert verify_ear(token, trust, NOW)["submods"]["cpu0"]["ear.status"] == "contraindicated"


@pytest.mark.parametrize("where", ["jwk", "header"])
def test_token_of_trustee_by_chain(where: str) -> None:
    """A token whose certificates lead to a root verifies, RS256 and below ``jwk`` as Trustee has it too."""
    key = rsa.generate_private_key(65537, 2048)
    chain = x5c(certificate("leaf", key, "middle", MIDDLE), A_MIDDLE)
    public = RSAKey.import_key(key.public_key()).as_dict(private=False)
    header = {"jwk": {**public, "alg": "RS256", "x5c": chain}} if where == "jwk" else {"x5c": chain}
    token = signed(trustee_claims(), key=key, alg="RS256", **header)
    assert verify_ear(token, EarTrust(roots=(A_ROOT,)), NOW)
    with pytest.raises(UntrustedRoot):
        verify_ear(token, EarTrust(roots=(certificate("root", OTHER, "root", OTHER, ca=True),)), NOW)
    with pytest.raises(BadSignature):
        verify_ear(token, EarTrust(keys=(KEY.public_key(),)), NOW)


def test_chain_of_another_key() -> None:
    """A chain that vouches for one key does not vouch for the key that signed."""
    chain = x5c(certificate("leaf", OTHER, "middle", MIDDLE), A_MIDDLE)
    public = ECKey.import_key(KEY.public_key()).as_dict(private=False)
    with pytest.raises(EndorsementMismatch):
        verify_ear(signed(trustee_claims(), jwk={**public, "x5c": chain}), EarTrust(roots=(A_ROOT,)), NOW)
    with pytest.raises(BadSignature):
        verify_ear(signed(trustee_claims(), x5c=chain), EarTrust(roots=(A_ROOT,)), NOW)


def test_header_key_is_not_believed() -> None:
    """A token that only brings its key along leads to no root, and to no key either."""
    public = ECKey.import_key(KEY.public_key()).as_dict(private=False)
    token = signed(trustee_claims(), jwk=public)
    with pytest.raises(UntrustedRoot, match="no certificate chain"):
        verify_ear(token, EarTrust(roots=(A_ROOT,)), NOW)
    with pytest.raises(BadSignature):
        verify_ear(token, EarTrust(), NOW)


def test_rsa_key_is_no_secret_for_other_algorithms() -> None:
    """The algorithm chooses the kind of key: no key of another kind is tried."""
    key = rsa.generate_private_key(65537, 2048)
    with pytest.raises(BadSignature, match="none of 0"):
        verify_ear(signed(trustee_claims()), EarTrust(keys=(key.public_key(),)), NOW)


def test_clock_skew() -> None:
    """Clocks may differ by as much as the caller says, and by no more than a minute."""
    keys, token = [KEY.public_key()], signed(trustee_claims())
    for moment in (NOW - timedelta(seconds=30), NOW + timedelta(seconds=329)):
        assert verify_ear(token, keys, moment, skew_s=30)
        with pytest.raises(StaleEvidence):
            verify_ear(token, keys, moment, skew_s=20)
    for skew_s in (61, -1):
        with pytest.raises(ConfigError):
            verify_ear(token, keys, NOW, skew_s=skew_s)


def test_longest_life() -> None:
    """A caller can refuse tokens that live longer than it likes."""
    keys, token = [KEY.public_key()], signed(trustee_claims())
    assert verify_ear(token, keys, NOW, max_life_s=300)
    with pytest.raises(StaleEvidence, match="300 s"):
        verify_ear(token, keys, NOW, max_life_s=299)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eat_profile", "another"),
        ("eat_profile", None),
        ("iat", "now"),
        ("iat", True),
        ("exp", None),
        ("exp", 1e400),
        ("exp", 0),
        ("nbf", "x"),
        ("ear.verifier-id", None),
        ("ear.verifier-id", {"developer": "x"}),
        ("submods", {}),
        ("submods", []),
        ("submods", {"cpu0": {}}),
        ("submods", {"cpu0": {"ear.status": "splendid"}}),
        ("submods", {"cpu0": {"ear.status": 2}}),
        ("submods", {"cpu0": {"ear.status": "affirming", "ear.trustworthiness-vector": {"hardware": 96}}}),
        ("submods", {"cpu0": {"ear.status": "affirming", "ear.trustworthiness-vector": {"hardware": -100}}}),
        ("submods", {"cpu0": {"ear.status": "warning", "ear.trustworthiness-vector": {"hardware": 128}}}),
        ("submods", {"cpu0": {"ear.status": "warning", "ear.trustworthiness-vector": {"hardware": "2"}}}),
        ("submods", {"cpu0": {"ear.status": "warning", "ear.trustworthiness-vector": [2]}}),
    ],
)
def test_claims_of_another_form(name: str, value: object) -> None:
    """A token lacking a claim, or with one of another form, is malformed although a trusted key signed it."""
    claims = trustee_claims()
    if value is None:
        del claims[name]
    else:
        claims[name] = value
    with pytest.raises(MalformedInput):
        verify_ear(signed(claims), [KEY.public_key()], NOW)


@pytest.mark.parametrize("header", [{"crit": ["x"], "x": 1}, {"b64": False, "crit": ["b64"]}, {"jwk": 7}])
def test_critical_headers(header: dict[str, Any]) -> None:
    """A header that asks for more than is understood is refused."""
    encoded = base64.urlsafe_b64encode(json.dumps({"alg": "ES256", **header}).encode()).rstrip(b"=").decode()
    token = ".".join([encoded, *signed(trustee_claims()).split(".")[1:]])
    with pytest.raises(MalformedInput):
        verify_ear(token, [KEY.public_key()], NOW)

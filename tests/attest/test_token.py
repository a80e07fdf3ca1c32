"""The verdict as a token."""

from __future__ import annotations

import base64
import json
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import AttestationResult, ReferenceValues, appraise
from cloister.attest.dcap import TdxClaims
from cloister.attest.token import EAT_PROFILE, issue_ear, verify_ear
from cloister.errors import BadSignature, MalformedInput, StaleEvidence, VerificationError
from tests.attest.conftest import NOW

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
    """Only ES256 is taken, whatever the header asks for."""
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

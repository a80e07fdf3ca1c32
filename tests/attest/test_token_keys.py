"""Whose tokens are believed."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey

from cloister.attest.token_keys import EarTrust, TokenKey, parse_jwk, parse_jwk_set, verify_x5c
from cloister.errors import (
    CloisterError,
    ConfigError,
    EndorsementMismatch,
    MalformedInput,
    StaleEvidence,
    UntrustedRoot,
    VerificationError,
)
from tests.vectors import vector

NOW = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
LEAF, ROOT, MIDDLE, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))


def certificate(
    name: str,
    key: Any,
    issuer: str,
    signer: Any,
    *,
    ca: bool | None = None,
    path_length: int | None = None,
    signs: bool | None = None,
    until: datetime = NOW + DAY,
    extension: x509.ExtensionType | None = None,
) -> x509.Certificate:
    """A certificate; None leaves an extension out."""

    def name_of(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(name))
        .issuer_name(name_of(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 10 * DAY)
        .not_valid_after(until)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if signs is not None:
        usage = dict.fromkeys(
            ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"], False
        )
        usage |= {"crl_sign": False, "encipher_only": False, "decipher_only": False}
        usage |= {"digital_signature": signs and not ca, "key_cert_sign": bool(signs and ca)}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(signer, hashes.SHA256())


def x5c(*chain: x509.Certificate) -> list[str]:
    """The form in a token's header."""
    return [base64.b64encode(item.public_bytes(Encoding.DER)).decode() for item in chain]


def public_numbers(key: TokenKey) -> Any:
    """What two keys are compared by."""
    return key.public_numbers()


A_ROOT = certificate("root", ROOT, "root", ROOT, ca=True, signs=True)
A_MIDDLE = certificate("middle", MIDDLE, "root", ROOT, ca=True, signs=True, path_length=0)
A_LEAF = certificate("leaf", LEAF, "middle", MIDDLE, ca=False, signs=True)


@pytest.mark.parametrize(
    ("scenario", "error"),
    [("scenario01", None), ("scenario02", EndorsementMismatch), ("scenario03", None)],
)
def test_scenarios_of_trustee(scenario: str, error: type[CloisterError] | None) -> None:
    """Trustee's own scenarios: a chain to the root, a key that is not the certificate's, and no chain."""
    jwk = json.loads(vector(f"kbs/dev/jwk/{scenario}-jwk.json").read_bytes())
    trust = EarTrust.of(roots_pem=vector(f"kbs/dev/jwk/{scenario}-trust.pem").read_bytes())
    header = {"alg": "RS256", "jwk": jwk}
    if error is not None:
        with pytest.raises(error):
            trust.candidates(header, NOW)
        return
    found = [public_numbers(key) for key in trust.candidates(header, NOW)]
    assert found == ([public_numbers(parse_jwk(jwk))] if "x5c" in jwk else [])


def test_jwk_set_of_trustee() -> None:
    """The JWK set that a Trustee service publishes gives the key of its certificate."""
    document = json.loads(vector("kbs/dev/jwk/as_expected-jwks.json").read_bytes())
    own = x509.load_pem_x509_certificate(vector("kbs/dev/jwk/as_cert-chain.pem").read_bytes())
    (found,) = parse_jwk_set(document)
    assert (found.alg, found.kid) == ("ES256", None)
    assert public_numbers(found.key) == own.public_key().public_numbers()  # type: ignore[union-attr]
    chain = document["keys"][0]["x5c"]
    assert public_numbers(verify_x5c(chain, [own], NOW)) == public_numbers(found.key)


@pytest.mark.parametrize(
    "chain",
    [
        (A_LEAF, A_MIDDLE),
        (A_LEAF, A_MIDDLE, A_ROOT),
        (A_LEAF, A_ROOT, A_MIDDLE),
        (A_LEAF, A_MIDDLE, A_MIDDLE),
    ],
)
def test_chains_in_any_order(chain: tuple[x509.Certificate, ...]) -> None:
    """Authorities may come in any order, and the root may be among them."""
    assert public_numbers(verify_x5c(x5c(*chain), [A_ROOT], NOW)) == LEAF.public_key().public_numbers()


def test_trust_in_an_authority_or_in_the_certificate_itself() -> None:
    """An intermediate authority can be the anchor, and so can the verifier's own certificate."""
    assert verify_x5c(x5c(A_LEAF), [A_MIDDLE], NOW)
    assert verify_x5c(x5c(A_LEAF), [A_LEAF], NOW)


def leaf_of(issuer: str, signer: Any, **more: Any) -> x509.Certificate:
    """A certificate of the leaf's key."""
    return certificate("leaf", LEAF, issuer, signer, **more)


@pytest.mark.parametrize(
    ("chain", "error"),
    [
        ((A_LEAF,), UntrustedRoot),
        ((certificate("root", OTHER, "root", OTHER, ca=True),), UntrustedRoot),
        ((leaf_of("root", OTHER),), UntrustedRoot),
        ((leaf_of("middle", MIDDLE), certificate("middle", MIDDLE, "root", ROOT)), UntrustedRoot),
        ((leaf_of("middle", MIDDLE), certificate("middle", MIDDLE, "root", ROOT, ca=False)), UntrustedRoot),
        (
            (leaf_of("middle", MIDDLE), certificate("middle", MIDDLE, "root", ROOT, ca=True, signs=False)),
            UntrustedRoot,
        ),
        (
            (
                leaf_of("lower", OTHER),
                certificate("lower", OTHER, "middle", MIDDLE, ca=True),
                A_MIDDLE,
            ),
            UntrustedRoot,
        ),
        ((leaf_of("root", ROOT, signs=False),), EndorsementMismatch),
        ((leaf_of("root", ROOT, until=NOW - DAY),), StaleEvidence),
        (
            (
                leaf_of("middle", MIDDLE),
                certificate("middle", MIDDLE, "root", ROOT, ca=True, until=NOW - DAY),
            ),
            StaleEvidence,
        ),
        ((leaf_of("root", ROOT, extension=x509.PolicyConstraints(0, None)),), MalformedInput),
    ],
    ids=[
        "issuer is missing",
        "another root of the same name",
        "issuer's name and another's signature",
        "issuer does not say that it is an authority",
        "issuer says that it is none",
        "issuer may not sign certificates",
        "longer than an authority permits",
        "not for signatures",
        "expired",
        "expired authority",
        "unknown critical extension",
    ],
)
def test_chains_that_do_not_vouch(chain: tuple[x509.Certificate, ...], error: type[CloisterError]) -> None:
    """Every defect of a chain is an error of its kind."""
    with pytest.raises(error):
        verify_x5c(x5c(*chain), [A_ROOT], NOW)


def test_renewed_authority() -> None:
    """Where an expired and a renewed certificate of one authority are there, the valid one counts."""
    old = certificate("middle", MIDDLE, "root", ROOT, ca=True, until=NOW - DAY)
    assert verify_x5c(x5c(A_LEAF, old, A_MIDDLE), [A_ROOT], NOW)


def test_authorities_that_issue_each_other_do_not_take_long() -> None:
    """A knot of authorities of one name and key is given up at once."""
    knot = [certificate("k", OTHER, "k", OTHER, ca=True) for _ in range(7)]
    begun = time.perf_counter()
    with pytest.raises(UntrustedRoot):
        verify_x5c(x5c(leaf_of("k", OTHER), *knot), [A_ROOT], NOW)
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    "chain", [None, [], "AA", ["AA"], [7], ["!"], [""], x5c(A_LEAF) * 9, ["A" * 100_000], {"0": "AA"}]
)
def test_no_chains(chain: Any) -> None:
    """What is not a list of a few certificates is malformed."""
    with pytest.raises(MalformedInput):
        verify_x5c(chain, [A_ROOT], NOW)


def test_header_key_without_certificates_is_no_key() -> None:
    """A key in the header that nothing vouches for is never a candidate."""
    jwk = ECKey.import_key(LEAF.public_key()).as_dict(private=False)
    assert EarTrust(roots=(A_ROOT,)).candidates({"alg": "ES256", "jwk": jwk}, NOW) == []
    assert EarTrust().candidates({"alg": "ES256", "jwk": jwk, "x5c": x5c(A_LEAF)}, NOW) == []


def test_key_identifiers_choose_from_a_set() -> None:
    """A token that names a key is checked with that key of the set only, and an algorithm binds its key."""
    keys = {name: ec.generate_private_key(ec.SECP256R1()).public_key() for name in ("a", "b")}
    jwks = [
        {**ECKey.import_key(key).as_dict(private=False), "kid": name, "alg": "ES256"}
        for name, key in keys.items()
    ]
    trust = EarTrust.of(jwk_sets=[{"keys": jwks}])
    (chosen,) = trust.candidates({"alg": "ES256", "kid": "b"}, NOW)
    assert public_numbers(chosen) == keys["b"].public_numbers()
    assert trust.candidates({"alg": "RS256", "kid": "b"}, NOW) == []
    assert trust.candidates({"alg": "ES256", "kid": "c"}, NOW) == []
    assert len(trust.candidates({"alg": "ES256"}, NOW)) == 2


def test_other_keys_of_a_set_are_left_out() -> None:
    """Keys for encryption, and of kinds that no token is signed with, do not matter."""
    public = ECKey.import_key(LEAF.public_key()).as_dict(private=False)
    others = [{**public, "use": "enc"}, {"kty": "oct", "k": "AA"}, {"kty": "EC", "crv": "P-521"}]
    assert parse_jwk_set({"keys": others}) == ()


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"keys": 7},
        {"keys": [7]},
        {"keys": [{}] * 65},
        {"keys": [{"kty": "RSA", "n": "AA", "e": "AQAB"}]},
        {"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]},
        {"keys": [{"kty": "EC", "crv": "P-256", "x": "AA"}]},
        {"keys": [{**ECKey.import_key(LEAF.public_key()).as_dict(private=False), "kid": 7}]},
    ],
)
def test_no_jwk_sets(document: Any) -> None:
    """What is not a JWK set, or has a damaged or short key in it, is malformed."""
    with pytest.raises(MalformedInput):
        parse_jwk_set(document)


def test_anchors_that_cannot_be_read() -> None:
    """A damaged anchor is an error of configuration, and does not leave fewer anchors behind."""
    with pytest.raises(ConfigError):
        EarTrust.of(roots_pem=b"not PEM")
    with pytest.raises(ConfigError):
        EarTrust.of(jwk_sets=[{"keys": [{"kty": "RSA"}]}])


def test_short_rsa_keys() -> None:
    """An RSA key below 2,048 bits is no key for tokens."""
    short = rsa.generate_private_key(65537, 1024)
    with pytest.raises(MalformedInput):
        verify_x5c(x5c(certificate("leaf", short, "root", ROOT)), [A_ROOT], NOW)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["kty", "crv", "x", "y", "n", "e", "keys", "x5c"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_raises_only_declared_errors(value: Any) -> None:
    """Whatever a header or a set holds, only declared errors come out."""
    trust = EarTrust(roots=(A_ROOT,))
    for read in (parse_jwk_set, lambda found: trust.candidates({"alg": "ES256", "jwk": found}, NOW)):
        with contextlib.suppress(MalformedInput, VerificationError):
            read(value)

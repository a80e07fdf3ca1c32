"""JWE to a TEE key: vectors, an independent library, the header trap, and every refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe as other
from joserfc.jwk import ECKey, RSAKey

from cloister.crypto.jwe import (
    MEMBERS,
    TeePrivateKey,
    TeePublicKey,
    b64u_decode,
    b64u_encode,
    decrypt,
    encrypt,
    public_jwk,
)
from cloister.errors import BadCiphertext, CloisterError, MalformedInput
from tests.vectors import vector

ALGS = ["ECDH-ES+A256KW", "RSA-OAEP-256", "A256GCM"]
KEYS: dict[str, Any] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048),
}
VECTORS = "kbs/dev/kbs_jwe_and_runtime_data_vectors.json"


def other_key(key: Any) -> Any:
    """The independent library's form of a private key."""
    family = RSAKey if isinstance(key, rsa.RSAPrivateKey) else ECKey
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return family.import_key(pem)


def test_published_messages_open() -> None:
    """Each published message opens to its plaintext, whatever the order of its header."""
    cases = json.loads(vector(VECTORS).read_text())["jwe"]
    assert len(cases) == 3
    for case in cases:
        jwk = case["tee_private_jwk"]
        family = RSAKey if jwk["kty"] == "RSA" else ECKey
        private = family.import_key(jwk).private_key
        assert decrypt(private, case["response"]).hex() == case["plaintext_hex"]
        assert TeePublicKey.from_jwk(case["tee_pubkey"]).jwk == case["tee_pubkey"]


@pytest.mark.parametrize("name", KEYS)
def test_what_we_encrypt_an_independent_library_opens(name: str) -> None:
    """The five members joined by dots are a compact JWE that another implementation accepts."""
    recipient = TeePublicKey.from_jwk(public_jwk(KEYS[name].public_key()))
    message = encrypt(recipient, b"sixteen byte key")
    opened = other.decrypt_compact(".".join(message[m] for m in MEMBERS), other_key(KEYS[name]), ALGS)
    assert opened.plaintext == b"sixteen byte key"


@pytest.mark.parametrize("name", KEYS)
def test_what_an_independent_library_encrypts_we_open(name: str) -> None:
    """A compact JWE of another implementation, split at its dots, opens."""
    alg = "RSA-OAEP-256" if name == "RSA" else "ECDH-ES+A256KW"
    text = other.encrypt_compact({"alg": alg, "enc": "A256GCM"}, b"secret", other_key(KEYS[name]), ALGS)
    message = dict(zip(MEMBERS, text.split("."), strict=True))
    assert decrypt(KEYS[name], message) == b"secret"


@pytest.mark.parametrize("name", KEYS)
def test_header_survives_the_guest_writing_it_again(name: str) -> None:
    """Parsing the header and writing it as compact JSON, epk sorted or not, changes no byte."""
    message = encrypt(TeePublicKey.from_jwk(public_jwk(KEYS[name].public_key())), b"x")
    raw = b64u_decode(message["protected"], "protected")
    header = json.loads(raw)
    again = {"alg": header.pop("alg"), "enc": header.pop("enc"), **header}
    as_kept = json.dumps(again, separators=(",", ":")).encode()
    if "epk" in again:
        again["epk"] = dict(sorted(again["epk"].items()))
        assert list(again["epk"]) == ["crv", "kty", "x", "y"]
    as_sorted = json.dumps(again, separators=(",", ":")).encode()
    assert as_kept == raw
    assert as_sorted == raw


@given(st.binary(max_size=300))
@settings(max_examples=25, deadline=None)
def test_round_trip(plaintext: bytes) -> None:
    """Any plaintext comes back, the empty one included."""
    key = TeePrivateKey.generate()
    assert key.decrypt(encrypt(TeePublicKey.from_jwk(key.public_jwk), plaintext)) == plaintext


@pytest.mark.parametrize("member", MEMBERS)
def test_any_change_is_noticed(member: str) -> None:
    """A message with one changed bit in any of its members does not open."""
    key = TeePrivateKey.generate()
    message = encrypt(TeePublicKey.from_jwk(key.public_jwk), b"secret")
    raw = bytearray(b64u_decode(message[member], member))
    raw[len(raw) // 2] ^= 1
    with pytest.raises((BadCiphertext, MalformedInput)):
        key.decrypt({**message, member: b64u_encode(bytes(raw))})


def test_another_key_does_not_open_it() -> None:
    """A message opens only with the key it was made for."""
    message = encrypt(TeePublicKey.from_jwk(TeePrivateKey.generate().public_jwk), b"secret")
    with pytest.raises(BadCiphertext):
        TeePrivateKey.generate().decrypt(message)


def refused(change: dict[str, Any], base: str = "P-256") -> str:
    """The message with which a changed JWK is refused."""
    jwk = {**public_jwk(KEYS[base].public_key()), **change}
    with pytest.raises(MalformedInput) as caught:
        TeePublicKey.from_jwk(jwk)
    return str(caught.value)


@pytest.mark.parametrize("alg", ["RSA1_5", "RSA-OAEP", "none", "", "ECDH-ES+A256KW"])
def test_other_rsa_algorithms_are_refused(alg: str) -> None:
    """RSA1_5 above all, and every other algorithm than RSA-OAEP-256, is refused for an RSA key."""
    assert "RSA-OAEP-256" in refused({"alg": alg}, "RSA")


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "ECDH-ES"},
        {"alg": "RSA1_5"},
        {"alg": None},
        {"crv": "P-384"},
        {"crv": "P-521"},
        {"kty": "oct"},
        {"kty": None},
        {"kty": ["EC"]},
        {"x": 5},
        {"x": "AAAA"},
        {"y": b64u_encode(bytes(32))},
        {"x": "!" * 43},
    ],
)
def test_broken_ec_keys_are_refused(change: dict[str, Any]) -> None:
    """A key of another curve, type or algorithm, or a point off its curve, is refused."""
    assert "tee-pubkey" in refused(change)


def test_weak_rsa_keys_are_refused() -> None:
    """An RSA modulus under 2048 bits is refused."""
    assert "2048" in refused({"n": b64u_encode(b"\xff" * 128)}, "RSA")


def test_extra_members_are_dropped() -> None:
    """The rebuilt JWK has exactly the members of the typed struct on the other side."""
    jwk = public_jwk(KEYS["P-256"].public_key())
    assert TeePublicKey.from_jwk({**jwk, "kid": "1", "d": "secret"}).jwk == jwk


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "ECDH-ES+A256KW", "enc": "A128GCM"},
        {"alg": "RSA1_5", "enc": "A256GCM"},
        {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"},
        {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "epk": public_jwk(KEYS["P-521"].public_key())},
        {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "epk": public_jwk(KEYS["RSA"].public_key())},
        {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "zip": "DEF"},
        {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "crit": ["x"]},
        [],
    ],
)
def test_foreign_headers_are_malformed(header: Any) -> None:
    """A header with another algorithm, no ephemeral key, or one on another curve is malformed."""
    message = encrypt(TeePublicKey.from_jwk(public_jwk(KEYS["P-256"].public_key())), b"x")
    message["protected"] = b64u_encode(json.dumps(header).encode())
    with pytest.raises(MalformedInput):
        decrypt(KEYS["P-256"], message)


@given(st.dictionaries(st.sampled_from(MEMBERS), st.text(max_size=40) | st.integers() | st.none()))
@settings(max_examples=100, deadline=None)
def test_hostile_messages_raise_only_our_errors(message: dict[str, Any]) -> None:
    """Nothing but the declared errors leaves ``decrypt``, whatever it is given."""
    with pytest.raises(CloisterError):
        decrypt(KEYS["P-256"], message)


def test_repr_is_redacted() -> None:
    """The private key does not show itself."""
    assert "redacted" in repr(TeePrivateKey.generate())

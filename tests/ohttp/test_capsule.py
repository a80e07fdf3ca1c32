"""OHTTP capsules: RFC 9458's appendix A byte for byte, key configurations, and every refusal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.hpke import Aead, Kdf, Kem, PrivateKey
from cloister.errors import BadCiphertext, CloisterError, MalformedInput
from cloister.ohttp.capsule import (
    CapsuleHeader,
    KeyConfig,
    open_request,
    parse_key_configs,
    render_key_configs,
    seal_request,
)
from tests.vectors import vector

X25519 = Kem.X25519_HKDF_SHA256
KEY = PrivateKey.derive(X25519, b"\x01" * 32)
CONFIG = KeyConfig(9, KEY.public, ((Kdf.HKDF_SHA256, Aead.AES_128_GCM),))


@pytest.fixture(scope="module")
def rfc9458() -> dict[str, bytes]:
    """RFC 9458, appendix A."""
    raw = json.loads(vector("ohttp/dev/rfc9458_appendix_a.json").read_text())
    return {name: bytes.fromhex(value) for name, value in raw.items()}


def test_appendix_a_as_client(rfc9458: dict[str, bytes]) -> None:
    """With the RFC's ephemeral key the client writes the RFC's request and reads its response."""
    config = KeyConfig.parse(rfc9458["key_config"])
    ephemeral = PrivateKey.from_bytes(X25519, rfc9458["client_ephemeral_sk"])
    capsule, opener = seal_request(config, rfc9458["bhttp_request"], ephemeral=ephemeral)
    assert capsule == rfc9458["encapsulated_request"]
    assert opener.open(rfc9458["encapsulated_response"]) == rfc9458["bhttp_response"]


def test_appendix_a_as_gateway(rfc9458: dict[str, bytes]) -> None:
    """With the RFC's key and nonce the gateway reads the RFC's request and writes its response."""
    key = PrivateKey.from_bytes(X25519, rfc9458["gateway_skX25519"])
    assert KeyConfig.parse(rfc9458["key_config"]).public == key.public
    request, sealer = open_request(key, rfc9458["encapsulated_request"])
    assert request == rfc9458["bhttp_request"]
    sealed = sealer.seal(rfc9458["bhttp_response"], response_nonce=rfc9458["encapsulated_response"][:16])
    assert sealed == rfc9458["encapsulated_response"]


def test_appendix_a_key_config(rfc9458: dict[str, bytes]) -> None:
    """The RFC's key configuration parses to its parts and is written again byte for byte."""
    config = KeyConfig.parse(rfc9458["key_config"])
    assert (config.key_id, config.public.kem, config.algorithms) == (1, X25519, ((1, 1), (1, 3)))
    assert config.render() == rfc9458["key_config"]


@pytest.mark.parametrize("kem", list(Kem))
@pytest.mark.parametrize("aead", list(Aead))
def test_round_trip_of_every_suite(kem: Kem, aead: Aead) -> None:
    """Request and response cross under every supported suite."""
    key = PrivateKey.generate(kem)
    capsule, opener = seal_request(KeyConfig(1, key.public, ((Kdf.HKDF_SHA256, aead),)), b"request")
    request, sealer = open_request(key, capsule)
    assert (request, opener.open(sealer.seal(b"response"))) == (b"request", b"response")
    assert sealer.seal(b"response") != sealer.seal(b"response")


def test_every_changed_byte_of_a_request_is_refused() -> None:
    """The clear header is authenticated too: no byte of a capsule may change."""
    capsule, _ = seal_request(CONFIG, b"request")
    for index in range(len(capsule)):
        changed = capsule[:index] + bytes([capsule[index] ^ 1]) + capsule[index + 1 :]
        with pytest.raises((BadCiphertext, MalformedInput)):
            open_request(KEY, changed)


def test_every_truncation_is_refused() -> None:
    """A capsule cut anywhere does not open, nor does a response."""
    capsule, opener = seal_request(CONFIG, b"request")
    _, sealer = open_request(KEY, capsule)
    for cut in range(len(capsule)):
        with pytest.raises((BadCiphertext, MalformedInput)):
            open_request(KEY, capsule[:cut])
    sealed = sealer.seal(b"response")
    for cut in range(len(sealed)):
        with pytest.raises(BadCiphertext):
            opener.open(sealed[:cut])


def test_every_changed_byte_of_a_response_is_refused() -> None:
    """No byte of a sealed response may change, its nonce included."""
    capsule, opener = seal_request(CONFIG, b"request")
    sealed = open_request(KEY, capsule)[1].seal(b"response")
    for index in range(len(sealed)):
        with pytest.raises(BadCiphertext):
            opener.open(sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :])


def test_the_answer_to_another_request_is_refused() -> None:
    """An answer swapped in from another request of the same caller does not open."""
    (first, opener), (second, _) = seal_request(CONFIG, b"one"), seal_request(CONFIG, b"two")
    open_request(KEY, first)
    with pytest.raises(BadCiphertext):
        opener.open(open_request(KEY, second)[1].seal(b"answer to two"))


@given(st.binary(max_size=120))
def test_random_bytes(raw: bytes) -> None:
    """Random bytes raise only declared errors, in every parser."""
    opener = seal_request(CONFIG, b"")[1]
    for parse in (
        KeyConfig.parse,
        parse_key_configs,
        CapsuleHeader.parse,
        opener.open,
        lambda raw: open_request(KEY, raw),
        lambda raw: open_request(KEY, seal_request(CONFIG, b"")[0][:7] + raw),
    ):
        try:
            parse(raw)
        except (MalformedInput, BadCiphertext):
            continue


@given(st.data())
def test_truncated_key_configs(data: st.DataObject) -> None:
    """A key configuration has one length only."""
    raw = CONFIG.render()
    for bad in (raw[: data.draw(st.integers(0, len(raw) - 1))], raw + data.draw(st.binary(min_size=1))):
        with pytest.raises(MalformedInput):
            KeyConfig.parse(bad)


@pytest.mark.parametrize("listed", [b"", b"\x00\x01", b"\x00\x01\x00\x01\x00\x01"])
def test_bad_algorithm_lists(listed: bytes) -> None:
    """The list of algorithms holds whole pairs, and at least one."""
    start = CONFIG.render()[: 3 + 32]
    with pytest.raises(MalformedInput, match="symmetric algorithms"):
        KeyConfig.parse(start + len(listed).to_bytes(2, "big") + listed)


def test_first_supported_algorithm_is_used() -> None:
    """Unknown pairs are stepped over; a configuration of unknown pairs only cannot be used."""
    config = KeyConfig(1, KEY.public, ((0x0A0A, 0x0A0A), (1, Aead.CHACHA20_POLY1305), (1, 1)))
    assert KeyConfig.parse(config.render()) == config
    assert config.pick_suite().aead is Aead.CHACHA20_POLY1305
    with pytest.raises(MalformedInput, match="no supported combination"):
        KeyConfig(1, KEY.public, ((0x0A0A, 0x0A0A),)).pick_suite()


def test_list_of_key_configs() -> None:
    """A list keeps its order and steps over configurations of unknown KEMs."""
    p256 = KeyConfig(4, PrivateKey.generate(Kem.P256_HKDF_SHA256).public, ((1, 2),))
    unknown = b"\x05\x64\x64" + bytes(40)
    raw = (
        render_key_configs((CONFIG,))
        + len(unknown).to_bytes(2, "big")
        + unknown
        + render_key_configs((p256,))
    )
    assert parse_key_configs(raw) == (CONFIG, p256)
    for bad in (b"", raw[:-1], raw + b"\x00", len(unknown).to_bytes(2, "big") + unknown, bytes(70_000)):
        with pytest.raises(MalformedInput):
            parse_key_configs(bad)


def test_unknown_suite_in_a_capsule() -> None:
    """A capsule of a suite that is not supported is refused before any cryptography."""
    capsule, _ = seal_request(CONFIG, b"request")
    with pytest.raises(CloisterError, match="unsupported HPKE suite"):
        open_request(KEY, capsule[:5] + b"\x00\x09" + capsule[7:])

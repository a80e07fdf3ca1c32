"""HPKE: RFC 9180's vectors through our wrapper and through the library, and every refusal."""

from __future__ import annotations

import json
import pickle
from hashlib import sha256, shake_256
from pathlib import Path
from typing import Any

import pyhpke
import pytest
from cryptography.hazmat.primitives import hpke as other_hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.hpke import SUITES, Aead, Kdf, Kem, PrivateKey, PublicKey, Suite, find_kem, find_suite
from cloister.errors import BadCiphertext, MalformedInput
from tests.vectors import vector

X25519 = Kem.X25519_HKDF_SHA256
HYBRID = Kem.MLKEM768_X25519
KEYS = {kem: PrivateKey.from_bytes(kem, b"\x07" * 32) for kem in Kem}
BASE, EXPORT_ONLY = 0, 0xFFFF


@pytest.fixture(scope="module")
def rfc9180() -> list[dict[str, Any]]:
    """The RFC's vectors for the two KEMs and the KDF that we have."""
    cases: list[dict[str, Any]] = json.loads(
        vector("hpke/dev/rfc9180_x25519_p256_hkdfsha256.json").read_text()
    )
    return cases


def test_base_mode_vectors(rfc9180: list[dict[str, Any]]) -> None:
    """Both sides of our wrapper give the RFC's ciphertexts and exported secrets in base mode."""
    cases = [case for case in rfc9180 if case["mode"] == BASE and case["aead_id"] != EXPORT_ONLY]
    assert len(cases) == 6
    for case in cases:
        suite = find_suite(case["kem_id"], case["kdf_id"], case["aead_id"])
        info = bytes.fromhex(case["info"])
        recipient = PrivateKey.derive(suite.kem, bytes.fromhex(case["ikmR"]))
        ephemeral = PrivateKey.derive(suite.kem, bytes.fromhex(case["ikmE"]))
        assert recipient.public.raw.hex() == case["pkRm"]
        assert PrivateKey.from_bytes(suite.kem, bytes.fromhex(case["skRm"])).public == recipient.public
        sender = suite.setup_sender(recipient.public, info, ephemeral=ephemeral)
        assert sender.enc.hex() == case["enc"]
        opener = suite.setup_recipient(sender.enc, recipient, info)
        wanted = dict(zip((0, 1, 2, 4), case["encryptions"][:4], strict=True))
        for step in range(5):
            item = wanted.get(step, case["encryptions"][0])
            pt, aad = bytes.fromhex(item["pt"]), bytes.fromhex(item["aad"])
            ct = sender.seal(pt, aad)
            assert step not in wanted or ct.hex() == item["ct"]
            assert opener.open(ct, aad) == pt
        for export in case["exports"]:
            context = bytes.fromhex(export["exporter_context"])
            assert sender.export(context, export["L"]).hex() == export["exported_value"]
            assert opener.export(context, export["L"]).hex() == export["exported_value"]


def test_library_agrees_with_the_rfc_in_all_modes(rfc9180: list[dict[str, Any]]) -> None:
    """The library underneath passes the vectors of all four modes, export-only included."""
    for case in rfc9180:
        suite = pyhpke.CipherSuite.new(
            pyhpke.KEMId(case["kem_id"]), pyhpke.KDFId(case["kdf_id"]), pyhpke.AEADId(case["aead_id"])
        )
        pair = suite.kem.derive_key_pair(bytes.fromhex(case["ikmR"]))
        sender = suite.kem.derive_key_pair(bytes.fromhex(case["ikmS"])).public_key if "ikmS" in case else None
        context = suite.create_recipient_context(
            bytes.fromhex(case["enc"]),
            pair.private_key,
            bytes.fromhex(case["info"]),
            sender,
            bytes.fromhex(case.get("psk", "")),
            bytes.fromhex(case.get("psk_id", "")),
        )
        for item in case["encryptions"][:3]:
            assert context.open(bytes.fromhex(item["ct"]), bytes.fromhex(item["aad"])).hex() == item["pt"]
        for export in case["exports"]:
            exported = context.export(bytes.fromhex(export["exporter_context"]), export["L"])
            assert exported.hex() == export["exported_value"]


def test_second_implementation_opens_what_we_seal() -> None:
    """HPKE of the cryptography package, which shares no HPKE code with ours, agrees both ways."""
    raw = bytes(range(32))
    ours, theirs = PrivateKey.from_bytes(X25519, raw), X25519PrivateKey.from_private_bytes(raw)
    suite = find_suite(X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM)
    other = other_hpke.Suite(other_hpke.KEM.X25519, other_hpke.KDF.HKDF_SHA256, other_hpke.AEAD.AES_128_GCM)
    sender = suite.setup_sender(ours.public, b"info")
    assert other.decrypt(sender.enc + sender.seal(b"prompt"), theirs, b"info") == b"prompt"
    sealed = other.encrypt(b"answer", theirs.public_key(), b"info")
    assert suite.setup_recipient(sealed[:32], ours, b"info").open(sealed[32:]) == b"answer"


def test_hybrid_vector() -> None:
    """The recipient's side of MLKEM768-X25519 gives what draft-ietf-hpke-pq publishes."""
    case = json.loads(Path(__file__).with_name("mlkem768_x25519.json").read_text())
    suite = find_suite(case["kem_id"], case["kdf_id"], case["aead_id"])
    key = PrivateKey.from_bytes(suite.kem, bytes.fromhex(case["skRm"]))
    assert sha256(key.public.raw).hexdigest() == case["pkRm_sha256"]
    context = suite.setup_recipient(bytes.fromhex(case["enc"]), key, bytes.fromhex(case["info"]))
    for item in case["encryptions"]:
        assert context.open(bytes.fromhex(item["ct"]), bytes.fromhex(item["aad"])).hex() == item["pt"]
    for item in case["exports"]:
        assert (
            context.export(bytes.fromhex(item["exporter_context"]), item["L"]).hex() == item["exported_value"]
        )


def test_second_implementation_of_the_hybrid() -> None:
    """HPKE of the cryptography package has the same KEM in other code than ours, and agrees."""
    mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    theirs = other_hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
    suite = find_suite(HYBRID, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
    other = other_hpke.Suite(
        other_hpke.KEM.MLKEM768_X25519, other_hpke.KDF.HKDF_SHA256, other_hpke.AEAD.AES_256_GCM
    )
    raw = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    sender = suite.setup_sender(PublicKey(HYBRID, raw), b"info")
    assert other.decrypt(sender.enc + sender.seal(b"prompt"), theirs, b"info") == b"prompt"
    ours = KEYS[HYBRID]
    expanded = shake_256(b"\x07" * 32).digest(96)
    public = other_hpke.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
    ).public_key()
    sealed = other.encrypt(b"answer", public, b"info")
    assert suite.setup_recipient(sealed[:1120], ours, b"info").open(sealed[1120:]) == b"answer"


def test_both_halves_of_the_hybrid_count() -> None:
    """A changed byte in either half of ``enc`` or of the public key gives another secret, or is refused."""
    suite = find_suite(HYBRID, Kdf.HKDF_SHA256, Aead.AES_128_GCM)
    key = KEYS[HYBRID]
    sender = suite.setup_sender(key.public, b"")
    ct = sender.seal(b"secret")
    for place in (0, 1087, 1088, 1118):
        enc = bytearray(sender.enc)
        enc[place] ^= 1
        with pytest.raises(BadCiphertext):
            suite.setup_recipient(bytes(enc), key, b"").open(ct)
    for place in (1183, 1184):
        raw = bytearray(key.public.raw)
        raw[place] ^= 1
        other = suite.setup_sender(PublicKey(HYBRID, bytes(raw)), b"")
        with pytest.raises(BadCiphertext):
            suite.setup_recipient(other.enc, key, b"").open(other.seal(b"secret"))


def test_unusable_hybrid_keys() -> None:
    """Coefficients out of range, and an X25519 half of low order, are refused; so is DeriveKeyPair."""
    suite = find_suite(HYBRID, Kdf.HKDF_SHA256, Aead.AES_128_GCM)
    good = KEYS[HYBRID].public.raw
    with pytest.raises(MalformedInput, match="public key"):
        PublicKey(HYBRID, b"\xff" * 1184 + good[1184:])
    with pytest.raises(MalformedInput, match="low order"):
        suite.setup_sender(PublicKey(HYBRID, good[:1184] + bytes(32)), b"")
    enc = suite.setup_sender(KEYS[HYBRID].public, b"").enc
    with pytest.raises(MalformedInput, match="enc"):
        suite.setup_recipient(enc[:1088] + bytes(32), KEYS[HYBRID], b"")
    with pytest.raises(MalformedInput, match="derived"):
        PrivateKey.derive(HYBRID, bytes(32))
    with pytest.raises(MalformedInput, match="public key"):
        suite.setup_sender(KEYS[HYBRID].public, b"", ephemeral=KEYS[HYBRID])


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: f"{suite.kem.name}-{suite.aead.name}")
def test_wrong_key_info_aad_or_order_is_refused(suite: Suite) -> None:
    """Ciphertext opens only under the same key, info, associated data and place in the sequence."""
    key, other = KEYS[suite.kem], PrivateKey.generate(suite.kem)
    sender = suite.setup_sender(key.public, b"info")
    first, second = sender.seal(b"one", b"aad"), sender.seal(b"two", b"aad")
    attempts = [
        (suite.setup_recipient(sender.enc, other, b"info"), first, b"aad"),
        (suite.setup_recipient(sender.enc, key, b"other"), first, b"aad"),
        (suite.setup_recipient(sender.enc, key, b"info"), first, b""),
        (suite.setup_recipient(sender.enc, key, b"info"), second, b"aad"),
        (suite.setup_recipient(sender.enc, key, b"info"), first[:-1], b"aad"),
        (suite.setup_recipient(sender.enc, key, b"info"), b"", b"aad"),
    ]
    for context, ct, aad in attempts:
        with pytest.raises(BadCiphertext):
            context.open(ct, aad)


def test_context_ends_at_the_first_forgery() -> None:
    """After a message that does not authenticate even a good one is refused."""
    suite = find_suite(X25519, Kdf.HKDF_SHA256, Aead.CHACHA20_POLY1305)
    sender = suite.setup_sender(KEYS[X25519].public, b"")
    good = sender.seal(b"one")
    context = suite.setup_recipient(sender.enc, KEYS[X25519], b"")
    for ct in (b"\x00" * 20, good):
        with pytest.raises(BadCiphertext):
            context.open(ct)


@pytest.mark.parametrize("kem", list(Kem))
@given(raw=st.binary(max_size=80))
def test_random_bytes_as_keys_and_enc(kem: Kem, raw: bytes) -> None:
    """Bytes that are no key raise MalformedInput and nothing else."""
    suite = find_suite(kem, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
    for attempt in (
        lambda: PublicKey(kem, raw),
        lambda: PrivateKey.from_bytes(kem, raw),
        lambda: suite.setup_recipient(raw, KEYS[kem], b""),
        lambda: PrivateKey.derive(kem, raw),
    ):
        try:
            attempt()
        except MalformedInput:
            continue


def test_low_order_and_compressed_points_are_refused() -> None:
    """X25519's all-zero point and a compressed P-256 point are not usable keys."""
    suite = find_suite(X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM)
    with pytest.raises(MalformedInput):
        suite.setup_recipient(bytes(32), KEYS[X25519], b"")
    with pytest.raises(MalformedInput):
        suite.setup_sender(PublicKey(X25519, bytes(32)), b"")
    point = KEYS[Kem.P256_HKDF_SHA256].public.raw
    with pytest.raises(MalformedInput):
        PublicKey(Kem.P256_HKDF_SHA256, b"\x02" + point[1:33])
    with pytest.raises(MalformedInput):
        PublicKey(Kem.P256_HKDF_SHA256, b"\x02" + point[1:])
    with pytest.raises(MalformedInput):
        PrivateKey.from_bytes(Kem.P256_HKDF_SHA256, bytes(32))


def test_a_key_of_another_kem_is_refused() -> None:
    """A suite does not take keys of another KEM."""
    suite = find_suite(X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM)
    wrong = KEYS[Kem.P256_HKDF_SHA256]
    with pytest.raises(MalformedInput, match="another KEM"):
        suite.setup_sender(wrong.public, b"")
    with pytest.raises(MalformedInput, match="another KEM"):
        suite.setup_recipient(bytes(32), wrong, b"")


def test_unknown_identifiers_are_refused() -> None:
    """An identifier outside of the table is an error, not a guess."""
    for ids in ((0x0021, 1, 1), (0x0020, 2, 1), (0x0020, 1, 0xFFFF)):
        with pytest.raises(MalformedInput, match="unsupported HPKE suite"):
            find_suite(*ids)
    with pytest.raises(MalformedInput, match="0x0030"):
        find_kem(0x0030)


def test_private_key_does_not_show_itself() -> None:
    """Neither repr nor pickle gives a private key away."""
    key = PrivateKey.from_bytes(X25519, b"\x42" * 32)
    assert "42" * 4 not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)

"""The TPM's structures: messages, keys, signatures, PCR files; and what cannot be one."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.tpm.attest import parse_attest
from cloister.attest.tpm.keys import parse_key, spki_of
from cloister.attest.tpm.pcrfile import parse_pcr_file
from cloister.attest.tpm.signature import parse_signature
from cloister.errors import CloisterError, EndorsementMismatch, MalformedInput
from tests.fakes.tpm import AK_ATTRIBUTES, FakeTpm, pcr_values, rsa_key, sized, tpmt_public

BANKS = {"sha1": pcr_values("sha1", [0]), "sha256": pcr_values("sha256", [23, 4, 11])}
MESSAGE = FakeTpm().message(BANKS)


def test_message_is_cut_at_the_right_places() -> None:
    """Every field of a quote's message is found."""
    attest = parse_attest(MESSAGE)
    assert attest.extra_data == bytes(range(32))
    assert (attest.clock, attest.reset_count, attest.restart_count, attest.safe) == (5000, 3, 1, True)
    assert attest.firmware_version == 0x2020
    assert attest.selected == (("sha1", 0), ("sha256", 4), ("sha256", 11), ("sha256", 23))


@given(st.integers(0, len(MESSAGE) - 1))
def test_truncated_message_is_malformed(end: int) -> None:
    """A message that is cut anywhere, or continued, is malformed."""
    with pytest.raises(MalformedInput):
        parse_attest(MESSAGE[:end])
    with pytest.raises(MalformedInput):
        parse_attest(MESSAGE + bytes(end + 1))


@pytest.mark.parametrize(
    "message",
    [
        FakeTpm().message(BANKS, magic=0xFF544346),
        FakeTpm().message(BANKS, kind=0x8017),
        FakeTpm().message(BANKS, safe=2),
        FakeTpm().message(BANKS, nonce=bytes(67)),
        bytes(1025),
    ],
    ids=["magic", "certify", "safe", "nonce", "long"],
)
def test_other_messages_are_malformed(message: bytes) -> None:
    """Only a quote that a TPM has made is read."""
    with pytest.raises(MalformedInput):
        parse_attest(message)


def selection(*parts: bytes) -> bytes:
    """A message with this selection."""
    head = MESSAGE[: MESSAGE.index(struct.pack(">IHB", 2, 4, 3))]
    return head + struct.pack(">I", len(parts)) + b"".join(parts) + sized(bytes(32))


@pytest.mark.parametrize(
    "message",
    [
        selection(*[b"\x00\x0b\x03\xff\xff\xff"] * 2),
        selection(*[b"\x00\x0b\x03\xff\xff\xff"] * 17),
        selection(b"\x00\x12\x03\xff\xff\xff"),
        selection(b"\x00\x0b\x00"),
        selection(b"\x00\x0b\x09" + bytes(9)),
    ],
    ids=["twice", "many", "sm3", "empty", "wide"],
)
def test_selection_has_bounds(message: bytes) -> None:
    """A bank occurs once, is known, and has a bitmap of a sensible size."""
    with pytest.raises(MalformedInput):
        parse_attest(message)


KEYS = [rsa_key(), *(ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1()))]


@pytest.mark.parametrize("private", KEYS)
def test_key_has_many_forms(private: Any) -> None:
    """SubjectPublicKeyInfo in DER and PEM, TPMT_PUBLIC and TPM2B_PUBLIC are the same key."""
    public = private.public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    own = tpmt_public(public)
    assert {spki_of(parse_key(form)) for form in (spki, pem, own, sized(own))} == {spki}


@pytest.mark.parametrize(
    "attributes", [AK_ATTRIBUTES & ~(1 << 16), AK_ATTRIBUTES & ~2, AK_ATTRIBUTES | 1 << 17]
)
def test_key_that_signs_anything_is_refused(attributes: int) -> None:
    """A key that is not restricted, not fixed to its TPM, or decrypts, is no attestation key."""
    with pytest.raises(EndorsementMismatch, match="no attestation key"):
        parse_key(tpmt_public(rsa_key().public_key(), attributes))


def test_weak_and_strange_keys_are_malformed() -> None:
    """Short RSA keys, other curves and algorithms, and garbage are malformed."""
    weak: list[Any] = [
        rsa_key(1024).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
    ]
    forms = [key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in weak]
    own = tpmt_public(rsa_key().public_key())
    for raw in (*forms, own[:-1], own + b"\x00", b"", b"-----BEGIN PUBLIC KEY-----\n", bytes(5000)):
        with pytest.raises(MalformedInput):
            parse_key(raw)


@given(st.binary(max_size=300))
def test_random_structures_raise_nothing_else(raw: bytes) -> None:
    """Random bytes are malformed or, for keys, not acceptable."""
    key = rsa_key().public_key()
    for head in (b"", b"\x00\x01\x00\x0b", b"\x00\x23\x00\x0b", MESSAGE[:44], b"\x00\x14\x00\x0b"):
        for parse in (parse_attest, parse_key, parse_pcr_file, lambda part: parse_signature(part, key)):
            try:
                parse(head + raw)
            except CloisterError:
                continue


def pcr_file(values: list[bytes], bitmap: bytes = b"\x11\x00\x00\x00", bank: int = 0xB) -> bytes:
    """PCR values as tpm2-tools serialises them."""
    first = struct.pack("<HB", bank, 3) + bitmap + b"\x00"
    lists = [values[at : at + 8] for at in range(0, len(values), 8)]
    parts = [struct.pack("<I", 1), first, bytes(15 * 8), struct.pack("<I", len(lists))]
    for part in lists:
        digests = b"".join(struct.pack("<H", len(value)) + value.ljust(64, b"\x00") for value in part)
        parts.append((struct.pack("<I", len(part)) + digests).ljust(532, b"\x00"))
    return b"".join(parts)


def test_pcr_file() -> None:
    """The serialised form of tpm2-tools gives values by bank and number, across its lists."""
    values = list(pcr_values("sha256", range(10)).values())
    assert parse_pcr_file(pcr_file(values[:2])) == {"sha256": {0: values[0], 4: values[1]}}
    assert len(parse_pcr_file(pcr_file(values, b"\xff\x03\x00\x00"))["sha256"]) == 10


@pytest.mark.parametrize(
    "raw",
    [
        pcr_file([bytes(32)]),
        pcr_file([bytes(32)] * 3),
        pcr_file([bytes(20)] * 2),
        pcr_file([bytes(32)] * 2, bank=0x12),
        pcr_file([bytes(32)] * 2)[:-1],
        b"",
    ],
    ids=["few", "many", "short", "bank", "cut", "empty"],
)
def test_pcr_file_must_fit(raw: bytes) -> None:
    """Values are as many and as long as the selection says."""
    with pytest.raises(MalformedInput):
        parse_pcr_file(raw)


@pytest.mark.parametrize(
    "raw",
    [b"\x00\x14\x00\x04" + sized(bytes(256)), b"\x00\x18\x00\x0b" + sized(b"r") + sized(b"s"), bytes(2000)],
    ids=["sha1", "ecdsa-for-rsa", "long"],
)
def test_signature_must_fit_the_key(raw: bytes) -> None:
    """SHA-1, another algorithm than the key's, and long signatures are malformed."""
    with pytest.raises(MalformedInput):
        parse_signature(raw, rsa_key().public_key())

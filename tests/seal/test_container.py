"""The container's bytes: strict, signed, and false after any change."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import struct
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import (
    BadCiphertext,
    BadSignature,
    CloisterError,
    MalformedInput,
    UntrustedRoot,
    VerificationError,
)
from cloister.seal import SealedFile, SealedHeader, TrustedSigners, read_header
from cloister.seal.container import MAX_HEADER_BYTES, VerifiedHeader, parse_header, render_header
from cloister.seal.reader import open_sealed
from tests.seal.conftest import KEY, OTHER_SIGNER, SIGNER, TRUSTED

FIELDS: dict[str, Any] = {
    "name": "digits",
    "version": "1.0",
    "sequence": 1,
    "kind": "file",
    "key": "kbs:///models/dek/digits-1",
    "key_version": 1,
    "plaintext_bytes": 140,
    "created": "2026-01-31T12:00:00Z",
    "signer": SIGNER.public,
}


def rendered(**fields: Any) -> bytes:
    """The canonical JSON of a header with some fields replaced or added."""
    return rfc8785.dumps({**FIELDS, **fields})


def read_all(container: bytes) -> bytes:
    """Header and payload of a container in memory."""
    file = io.BytesIO(container)
    verified = read_header(file, TRUSTED)
    with SealedFile(file, verified, KEY) as sealed:  # type: ignore[arg-type]
        return sealed.readall()


def test_layout_is_the_documented_one(seal: Any) -> None:
    """Every field lies where the table says, and the context is the digest of all before the payload."""
    sealed = seal()
    raw = sealed.path.read_bytes()
    magic, version, zero, length = struct.unpack_from(">8sHHI", raw)
    assert (magic, version, zero) == (b"CLOISTER", 1, 0)
    assert raw[16 : 16 + length] == rendered()
    verified = read_header(io.BytesIO(raw), TRUSTED)
    assert verified == VerifiedHeader(
        SealedHeader(**FIELDS),
        hashlib.sha256(raw[: 80 + length]).digest(),
        80 + length,
        len(raw) - 80 - length,
    )
    assert read_all(raw) == sealed.plaintext


def test_every_changed_byte_is_refused(seal: Any) -> None:
    """One bit flipped in any byte, and every bit of some, gives a declared error and no plaintext."""
    raw = seal().path.read_bytes()
    for offset in range(len(raw)):
        for bit in range(8) if offset % 37 == 0 else (offset % 8,):
            changed = bytearray(raw)
            changed[offset] ^= 1 << bit
            with pytest.raises((MalformedInput, VerificationError)):
                read_all(bytes(changed))


def test_every_truncation_and_extension_is_refused(seal: Any) -> None:
    """A container cut at any length, or with bytes added, gives a declared error and no plaintext."""
    raw = seal().path.read_bytes()
    for length in range(len(raw)):
        with pytest.raises((MalformedInput, VerificationError)):
            read_all(raw[:length])
    for extra in (b"\0", bytes(16), bytes(16400), raw):
        with pytest.raises(BadCiphertext):
            read_all(raw + extra)


def test_payload_of_another_container_is_refused(seal: Any) -> None:
    """Header and payload belong together: neither a newer header nor an older payload can be put in."""
    old, new = seal(sequence=1).path.read_bytes(), seal(sequence=2).path.read_bytes()
    split = read_header(io.BytesIO(old), TRUSTED).stream_offset
    with pytest.raises(BadCiphertext):
        read_all(new[:split] + old[split:])


def test_signer_must_be_trusted(seal: Any) -> None:
    """Another signer is refused, and every signer where nobody is trusted."""
    raw = io.BytesIO(seal(signer=OTHER_SIGNER).path.read_bytes())
    with pytest.raises(UntrustedRoot, match=OTHER_SIGNER.public):
        read_header(raw, TRUSTED)
    with pytest.raises(UntrustedRoot):
        read_header(io.BytesIO(seal().path.read_bytes()), TrustedSigners())


def test_signature_must_be_the_signers() -> None:
    """A trusted name under somebody else's signature is refused."""
    header = dataclasses.replace(SealedHeader(**FIELDS), signer=SIGNER.public)
    with pytest.raises(BadSignature):
        read_header(io.BytesIO(render_header(header, OTHER_SIGNER)), TRUSTED)


def test_another_key_is_refused(seal: Any) -> None:
    """The right signature does not open a container without its key."""
    with pytest.raises(BadCiphertext, match="key"):
        open_sealed(seal().path, key=type(KEY).generate(), trusted=TRUSTED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", ".hidden"),
        ("name", "../up"),
        ("name", "a/b"),
        ("name", "a\n"),
        ("name", "é"),
        ("name", "a" * 129),
        ("version", ".."),
        ("version", "1\0"),
        ("version", 1),
        ("sequence", -1),
        ("sequence", True),
        ("sequence", 1.5),
        ("sequence", "1"),
        ("key_version", -1),
        ("kind", "zip"),
        ("key", "kbs://host/a/b/c"),
        ("key", "kbs:///a/b"),
        ("key", "kbs:///a/b/.."),
        ("key", "kbs:///a/b/c/d"),
        ("key", "kbs:///a/b/c\n"),
        ("plaintext_bytes", -1),
        ("plaintext_bytes", 1 << 52),
        ("created", "2026-01-31"),
        ("created", "2026-02-30T12:00:00Z"),
        ("created", "2026-01-31T12:00:00+00:00"),
        ("created", "２026-01-31T12:00:00Z"),
        ("signer", "ed25519:AAAA"),
        pytest.param("signer", SIGNER.public + "=", id="signer-padded"),
        pytest.param("signer", SIGNER.public.removeprefix("ed25519:"), id="signer-without-kind"),
        ("comment", "an unknown field"),
    ],
)
def test_header_fields_are_strict(field: str, value: Any) -> None:
    """A field out of its form, and one that is not known, makes the header malformed."""
    with pytest.raises(MalformedInput):
        parse_header(rendered(**{field: value}))


@pytest.mark.parametrize("field", list(FIELDS))
def test_header_fields_are_required(field: str) -> None:
    """No field has a default."""
    with pytest.raises(MalformedInput):
        parse_header(rfc8785.dumps({name: value for name, value in FIELDS.items() if name != field}))


def test_header_must_be_canonical() -> None:
    """The same fields in other bytes, or a field twice, are refused: one header has one form."""
    canonical = rendered()
    assert parse_header(canonical) == SealedHeader(**FIELDS)
    for other in (
        b" " + canonical,
        canonical + b"\n",
        canonical.replace(b'"sequence":1', b'"sequence":1e0'),
        canonical.replace(b'"sequence":1', b'"sequence":0,"sequence":1'),
        canonical.replace(b"digits", b"d\\u0069gits"),
        b"[" * 60_000,
        b"\xff\xfe",
        b"",
    ):
        with pytest.raises(MalformedInput):
            parse_header(other)


def test_prefix_is_strict(seal: Any) -> None:
    """Another magic, version, non-zero padding or an over-long header is malformed."""
    rest = seal().path.read_bytes()[16:]
    length = read_header(io.BytesIO(seal().path.read_bytes()), TRUSTED).stream_offset - 80
    for prefix in (
        (b"CLOISTEX", 1, 0, length),
        (b"CLOISTER", 2, 0, length),
        (b"CLOISTER", 1, 1, length),
        (b"CLOISTER", 1, 0, MAX_HEADER_BYTES + 1),
        (b"CLOISTER", 1, 0, 0),
    ):
        with pytest.raises(MalformedInput):
            read_all(struct.pack(">8sHHI", *prefix) + rest)


@settings(max_examples=100, deadline=None)
@given(
    raw=st.binary(max_size=300)
    | st.binary(max_size=300).map(lambda rest: b"CLOISTER\0\1\0\0\0\0\0\x20" + rest)
)
def test_random_bytes_raise_only_declared_errors(raw: bytes) -> None:
    """Whatever the bytes are, the answer is malformed, and nothing else escapes."""
    with pytest.raises(MalformedInput):
        read_header(io.BytesIO(raw), TRUSTED)


@settings(max_examples=200, deadline=None)
@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(FIELDS)) | st.text(), inner),
        max_leaves=12,
    )
)
def test_random_json_raises_only_declared_errors(document: Any) -> None:
    """Whatever the JSON is, the parser raises nothing but our errors."""
    with pytest.raises(CloisterError):
        parse_header(json.dumps(document).encode())

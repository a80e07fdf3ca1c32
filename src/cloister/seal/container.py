"""The bytes of a sealed container: a signed header, then the encrypted payload.

Offsets with h = header length; integers are big-endian:

=========== ===== ======================================================================================
offset      size  field
=========== ===== ======================================================================================
0           8     magic, ``CLOISTER``
8           2     container version, 1
10          2     zero
12          4     h, at most 65536
16          h     header: JSON in canonical form (RFC 8785), the fields of ``SealedHeader``
16 + h      64    Ed25519 signature (RFC 8032) by ``signer`` over the 16 + h bytes before it
80 + h      rest  Cobblestone-256 message (``cloister.crypto.cobblestone``); its context is SHA-256 over the
                  80 + h bytes before it
=========== ===== ======================================================================================

The signature says who sealed what name, version and sequence under which key. The payload is bound to all of
that by its context, and authenticated under the data key: two payloads under one header need the owner's data
key. Nothing here is a digest of the plaintext, which would let anybody recognize a model they already have.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import BinaryIO, Literal

import msgspec
import rfc8785

from cloister.crypto.cobblestone import ciphertext_bytes
from cloister.errors import BadCiphertext, MalformedInput
from cloister.seal.signing import SIGNATURE_BYTES, SigningKey, TrustedSigners, parse_public, verify_signature

MAGIC = b"CLOISTER"
CONTAINER_VERSION = 1
PREFIX_BYTES = 16
MAX_HEADER_BYTES = 1 << 16
MAX_INTEGER = (1 << 53) - 1
"""The largest integer that RFC 8785 renders exactly."""

KINDS = ("mar", "safetensors", "file")

_PREFIX = struct.Struct(">8sHHI")
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
_NAME = re.compile(_SEGMENT)
_KEY_URI = re.compile(f"kbs:///{_SEGMENT}/{_SEGMENT}/{_SEGMENT}")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedHeader:
    """What a container says of itself in the clear. Constructing one checks every field."""

    name: str
    """Of the model: 1 to 128 of ``A-Z a-z 0-9 . _ -``, not starting with a dot."""
    version: str
    """Of the model, in the same alphabet."""
    sequence: int
    """Grows with every release of a name; a store refuses to go back."""
    kind: Literal["mar", "safetensors", "file"]
    key: str
    """Where the data key is: ``kbs:///repository/type/tag``."""
    key_version: int
    plaintext_bytes: int
    created: str
    """RFC 3339, UTC, whole seconds: ``2026-01-31T12:00:00Z``."""
    signer: str
    """Public key of the signer, ``ed25519:...``."""

    def __post_init__(self) -> None:
        for field in ("name", "version"):
            if not _NAME.fullmatch(getattr(self, field)):
                raise MalformedInput(
                    f"{field}: expected 1 to 128 of A-Z a-z 0-9 . _ - with no dot first,"
                    f" found {getattr(self, field)[:140]!r}"
                )
        for field in ("sequence", "key_version", "plaintext_bytes"):
            if not 0 <= getattr(self, field) <= MAX_INTEGER:
                raise MalformedInput(f"{field}: expected 0 to 2**53 - 1, found {getattr(self, field)}")
        if self.kind not in KINDS:
            raise MalformedInput(f"kind: expected one of {', '.join(KINDS)}, found {self.kind!r}")
        if not _KEY_URI.fullmatch(self.key):
            raise MalformedInput(f"key: expected kbs:///repository/type/tag, found {self.key[:420]!r}")
        ciphertext_bytes(self.plaintext_bytes)
        parse_time(self.created)
        parse_public(self.signer)


@dataclass(frozen=True, slots=True)
class VerifiedHeader:
    """A header whose signature and signer have been checked. Only ``read_header`` makes these."""

    header: SealedHeader
    context: bytes
    """SHA-256 over everything before the payload."""
    stream_offset: int
    stream_bytes: int


def parse_time(text: str) -> datetime:
    """An aware UTC time from ``created``.

    Raises:
        MalformedInput: another form, or no such time.
    """
    try:
        if not _CREATED.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise MalformedInput(
            f"created: expected RFC 3339 as 2026-01-31T12:00:00Z, found {text[:40]!r}"
        ) from error


def render_header(header: SealedHeader, signer: SigningKey) -> bytes:
    """Everything before the payload: prefix, canonical header, signature."""
    document = rfc8785.dumps(asdict(header))
    signed = _PREFIX.pack(MAGIC, CONTAINER_VERSION, 0, len(document)) + document
    return signed + signer.sign(signed)


def parse_header(document: bytes) -> SealedHeader:
    """The header from its canonical JSON; believes nothing, verifies nothing.

    Raises:
        MalformedInput: not JSON, not canonical, a field missing, unknown, of the wrong type or out of range.
    """
    try:
        header = msgspec.json.decode(document, type=SealedHeader)
        canonical = rfc8785.dumps(asdict(header))
    except MalformedInput:
        raise
    except (msgspec.MsgspecError, rfc8785.CanonicalizationError, ValueError, RecursionError) as error:
        raise MalformedInput(f"container header: {error}") from error
    if canonical != document:
        raise MalformedInput("container header is not canonical JSON of the known fields (RFC 8785)")
    return header


def read_header(source: BinaryIO, trusted: TrustedSigners) -> VerifiedHeader:
    """Read and verify everything before the payload, from the start of a seekable file.

    1. The prefix is ours, and the header has a bounded length.
    2. The header is canonical and every field of it has its form.
    3. Its signer is trusted.
    4. The signer's signature covers all bytes before it.
    5. The payload has the length that the signed header gives.

    The payload itself is authenticated when it is read.

    Raises:
        MalformedInput, UntrustedRoot, BadSignature, BadCiphertext: steps 1 and 2, 3, 4, 5.
    """
    total = source.seek(0, os.SEEK_END)
    source.seek(0)
    # 1
    prefix = _read_exactly(source, PREFIX_BYTES)
    magic, version, zero, length = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise MalformedInput("not a sealed container: it does not begin with CLOISTER")
    if version != CONTAINER_VERSION:
        raise MalformedInput(f"container version: expected {CONTAINER_VERSION}, found {version}")
    if zero != 0 or length > MAX_HEADER_BYTES:
        raise MalformedInput(
            f"container prefix: expected zero and at most {MAX_HEADER_BYTES}, found {zero}, {length}"
        )
    # 2
    document = _read_exactly(source, length)
    signature = _read_exactly(source, SIGNATURE_BYTES)
    header = parse_header(document)
    # 3
    trusted.check(header.signer)
    # 4
    verify_signature(header.signer, signature, prefix + document)
    # 5
    offset = PREFIX_BYTES + length + SIGNATURE_BYTES
    expected = ciphertext_bytes(header.plaintext_bytes)
    if total - offset != expected:
        raise BadCiphertext(f"payload: expected {expected} bytes, found {total - offset}")
    return VerifiedHeader(
        header=header,
        context=hashlib.sha256(prefix + document + signature).digest(),
        stream_offset=offset,
        stream_bytes=expected,
    )


def claimed_signer(source: BinaryIO) -> str:
    """Who a container says has sealed it. Nothing is verified: only for showing a stranger's container.

    Raises:
        MalformedInput: not a container.
    """
    source.seek(0)
    magic, _, _, length = _PREFIX.unpack(_read_exactly(source, PREFIX_BYTES))
    if magic != MAGIC or length > MAX_HEADER_BYTES:
        raise MalformedInput("not a sealed container: it does not begin with CLOISTER")
    return parse_header(_read_exactly(source, length)).signer


def _read_exactly(source: BinaryIO, length: int) -> bytes:
    parts = []
    while length:
        part = source.read(length)
        if not part:
            raise MalformedInput("container ends inside its header")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)

"""Chunked OHTTP (draft-ietf-ohai-chunked-ohttp-08): messages that are read as they come. No I/O.

Request, whose header is that of ``cloister.ohttp.capsule`` (7 bytes and ``enc``):

=========== ==============================================================
part        form
=========== ==============================================================
header      key id, KEM, KDF, AEAD, ``enc``
chunk, any  varint length (not 0), ciphertext of that length
number      of a piece of a Binary HTTP message
final chunk one zero byte, then ciphertext up to the end of the stream,
            authenticated with the additional data ``final``
=========== ==============================================================

A response has a random nonce of max(Nn, Nk) bytes for a header, and its chunks are encrypted under a key that
follows from the request (section 6.2), with the chunk's number in the AEAD nonce.

A stream that was cut has no final chunk: ``finish`` raises, and what came before is the caller's to forget.

Bytes are copied as seldom as that allows: pieces are encrypted from views, and chunks that came whole are
opened where they lie. A request of very many very small chunks is refused: each costs as much as a large one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from cloister.crypto.aead import AeadSequence, Buffer
from cloister.crypto.hpke import PrivateKey, RecipientContext, SenderContext, Suite, find_suite
from cloister.errors import BadCiphertext, MalformedInput
from cloister.ohttp.capsule import HEADER_BYTES, TAG_BYTES, CapsuleHeader, KeyConfig, pack_header
from cloister.ohttp.varint import render_varint

REQUEST_TYPE = "message/ohttp-chunked-req"
RESPONSE_TYPE = "message/ohttp-chunked-res"

PIECE_BYTES = 1 << 14
"""How much plaintext this package puts into a chunk; every receiver takes chunks of this size (section 3)."""
MAX_CHUNK_BYTES = (1 << 16) + TAG_BYTES
"""Longest ciphertext of one chunk that is accepted: what a half-open stream can keep in memory."""
SMALL_BYTES = 256
MAX_SMALL_CHUNKS = 1 << 16
"""So many chunks of less plaintext than ``SMALL_BYTES`` may a request have; they cost about 0.2 s."""

_FINAL: Final = b"final"
_REQUEST_LABEL = b"message/bhttp chunked request"
_RESPONSE_LABEL = b"message/bhttp chunked response"


class RequestSealer:
    """The client's end of one request; ``begin`` and then ``seal``, the last time with ``final``."""

    def __init__(self, config: KeyConfig, *, ephemeral: PrivateKey | None = None) -> None:
        """Set up for one request to a key that was verified before.

        Args:
            ephemeral: only to reproduce published vectors.
        """
        self._suite = suite = config.pick_suite()
        header = pack_header(config.key_id, suite)
        self._context: SenderContext = suite.setup_sender(config.public, _info(header), ephemeral=ephemeral)
        self._begin = header + self._context.enc
        self._done = False

    def begin(self) -> bytes:
        """The header, to be sent first."""
        return self._begin

    def seal(self, piece: Buffer, *, final: bool = False) -> bytes:
        """The next chunk; a piece that is not the last one must not be empty."""
        return b"".join(self.seal_parts(piece, final=final))

    def seal_parts(self, piece: Buffer, *, final: bool = False) -> tuple[bytes, bytes]:
        """As ``seal``: its frame and its ciphertext, for who joins many."""
        if self._done:
            raise MalformedInput("chunked request: the final chunk was made before")
        self._done = final
        return _frame(self._context.seal(piece, _FINAL if final else b""), final)

    def response_opener(self) -> ResponseOpener:
        """What opens the answer."""
        secret = self._context.export(_RESPONSE_LABEL, _secret_bytes(self._suite))
        return ResponseOpener(self._suite, self._context.enc, secret)


class ResponseSealer:
    """The gateway's end of one answer; ``begin`` and then ``seal``, the last time with ``final``."""

    def __init__(
        self, suite: Suite, enc: bytes, secret: bytes, *, response_nonce: bytes | None = None
    ) -> None:
        self._nonce = os.urandom(_secret_bytes(suite)) if response_nonce is None else response_nonce
        self._messages = _response_messages(suite, enc, secret, self._nonce)
        self._done = False

    def begin(self) -> bytes:
        """The nonce, to be sent first."""
        return self._nonce

    def seal(self, piece: Buffer, *, final: bool = False) -> bytes:
        """The next chunk."""
        return b"".join(self.seal_parts(piece, final=final))

    def seal_parts(self, piece: Buffer, *, final: bool = False) -> tuple[bytes, bytes]:
        """As ``seal``: its frame and its ciphertext, for who joins many."""
        if self._done:
            raise MalformedInput("chunked response: the final chunk was made before")
        self._done = final
        return _frame(self._messages.seal(piece, _FINAL if final else b""), final)


class RequestOpener:
    """The gateway's end of one request: bytes in as they come, pieces of the message out.

    Which key to use, and whether ``enc`` was seen before, the owner decides before ``open_with``.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._chunks: _Chunks | None = None
        self._context: RecipientContext | None = None
        self._suite: Suite | None = None
        self.header: CapsuleHeader | None = None
        self.enc = b""

    def receive(self, data: bytes) -> list[bytes]:
        """Take bytes in; the pieces that they complete, each authentic and in order.

        Before ``open_with`` nothing is opened and bytes are only kept: see ``header``.

        Raises:
            MalformedInput: a suite that is not supported, or a chunk over the limit.
            BadCiphertext: a chunk that does not authenticate.
        """
        if self._chunks is not None:
            return self._chunks.receive(data)
        self._rest += data
        if self.header is None and len(self._rest) >= HEADER_BYTES:
            self.header = CapsuleHeader.parse(bytes(self._rest[:HEADER_BYTES]))
            self._suite = find_suite(self.header.kem_id, self.header.kdf_id, self.header.aead_id)
        if self._suite is not None and not self.enc:
            end = HEADER_BYTES + self._suite.kem.enc_bytes
            if len(self._rest) >= end:
                self.enc = bytes(self._rest[HEADER_BYTES:end])
        if not self.enc and len(self._rest) > MAX_CHUNK_BYTES:
            raise MalformedInput("chunked request: no header")
        return []

    def open_with(self, key: PrivateKey) -> list[bytes]:
        """Begin to open, once ``enc`` is there; the pieces that have come already.

        Raises:
            MalformedInput, BadCiphertext: as ``receive``.
        """
        if self._suite is None or not self.enc:
            raise MalformedInput("chunked request: truncated header")
        context = self._suite.setup_recipient(self.enc, key, _info(bytes(self._rest[:HEADER_BYTES])))
        self._context = context
        self._chunks = _Chunks(context.open, what="chunked request", max_small=MAX_SMALL_CHUNKS)
        rest = bytes(self._rest[HEADER_BYTES + len(self.enc) :])
        self._rest.clear()
        return self._chunks.receive(rest)

    def finish(self) -> bytes:
        """The last piece, at the end of the stream.

        Raises:
            BadCiphertext: the stream was cut.
        """
        if self._chunks is None:
            raise BadCiphertext("chunked request: the stream was cut")
        return self._chunks.finish()

    def response_sealer(self, *, response_nonce: bytes | None = None) -> ResponseSealer:
        """What seals the answer; can be had before the request has ended."""
        if self._context is None or self._suite is None:
            raise MalformedInput("chunked request: not opened yet")
        secret = self._context.export(_RESPONSE_LABEL, _secret_bytes(self._suite))
        return ResponseSealer(self._suite, self.enc, secret, response_nonce=response_nonce)


class ResponseOpener:
    """The client's end of one answer: bytes in as they come, pieces of the message out."""

    def __init__(self, suite: Suite, enc: bytes, secret: bytes) -> None:
        self._suite, self._enc, self._secret = suite, enc, secret
        self._rest = bytearray()
        self._chunks: _Chunks | None = None

    def receive(self, data: bytes) -> list[bytes]:
        """Take bytes in; the pieces that they complete, each authentic and in order.

        Raises:
            BadCiphertext: a chunk that does not authenticate, or one over the limit.
        """
        if self._chunks is not None:
            return self._chunks.receive(data)
        self._rest += data
        size = _secret_bytes(self._suite)
        if len(self._rest) < size:
            return []
        messages = _response_messages(self._suite, self._enc, self._secret, bytes(self._rest[:size]))
        self._chunks = _Chunks(messages.open, what="chunked response")
        rest = bytes(self._rest[size:])
        self._rest.clear()
        return self._chunks.receive(rest)

    def finish(self) -> bytes:
        """The last piece, at the end of the stream.

        Raises:
            BadCiphertext: the stream was cut.
        """
        if self._chunks is None:
            raise BadCiphertext("chunked response: the stream was cut")
        return self._chunks.finish()


class _Chunks:
    """Cuts a stream into chunks and opens each. One failure ends it."""

    def __init__(
        self, open_chunk: Callable[[Buffer, bytes], bytes], *, what: str, max_small: int | None = None
    ) -> None:
        self._open, self._what = open_chunk, what
        self._small_left = max_small
        self._rest = bytearray()
        """The beginning of a chunk that is not whole yet, its length included; then the final one."""
        self._final = False
        self._failed = False

    def receive(self, data: bytes) -> list[bytes]:
        if self._failed:
            raise BadCiphertext(f"{self._what}: it failed before")
        try:
            return self._receive(data)
        except (BadCiphertext, MalformedInput):
            self._failed = True
            self._rest = bytearray()
            raise

    def finish(self) -> bytes:
        if self._failed or not self._final:
            self._failed = True
            raise BadCiphertext(f"{self._what}: the stream was cut")
        self._failed = True  # nothing may follow
        return self._opened(self._rest, _FINAL)

    def _receive(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        position = self._complete(data, pieces) if self._rest and not self._final else 0
        view = memoryview(data)
        while not self._final:
            size, start = _peek_varint(data, position)
            if start < 0:
                break
            if size == 0:
                self._final, position = True, start
                break
            self._check(size)
            end = start + size
            if end > len(data):
                break
            pieces.append(self._opened(view[start:end], b""))
            position = end
        self._rest += view[position:]
        if self._final and len(self._rest) > MAX_CHUNK_BYTES:
            raise MalformedInput(f"{self._what}: final chunk of over {MAX_CHUNK_BYTES} bytes")
        return pieces

    def _complete(self, data: bytes, pieces: list[bytes]) -> int:
        """Fill up the chunk that was begun before; how much of ``data`` that took."""
        position = 0
        while True:
            size, start = _peek_varint(self._rest, 0)
            if start >= 0:
                break
            if position == len(data):
                return position
            self._rest.append(data[position])
            position += 1
        if size == 0:
            self._final = True
            self._rest = bytearray()
            return position
        self._check(size)
        missing = start + size - len(self._rest)
        taken = data[position : position + missing]
        self._rest += taken
        if len(taken) == missing:
            pieces.append(self._opened(memoryview(self._rest)[start:], b""))
            self._rest = bytearray()  # not cleared: an error's traceback may hold the view
        return position + len(taken)

    def _check(self, size: int) -> None:
        if not TAG_BYTES <= size <= MAX_CHUNK_BYTES:
            raise MalformedInput(f"{self._what}: chunk of {size} bytes, limit is {MAX_CHUNK_BYTES}")

    def _opened(self, ct: Buffer, aad: bytes) -> bytes:
        if self._small_left is not None and len(ct) < SMALL_BYTES + TAG_BYTES:
            self._small_left -= 1
            if self._small_left < 0:
                raise MalformedInput(f"{self._what}: more than {MAX_SMALL_CHUNKS} small chunks")
        try:
            return self._open(ct, aad)
        except BadCiphertext as error:
            raise BadCiphertext(f"{self._what}: a chunk does not authenticate") from error


def _response_messages(suite: Suite, enc: bytes, secret: bytes, response_nonce: bytes) -> AeadSequence:
    """Section 6.2: key and base nonce of an answer."""
    prk = suite.extract(enc + response_nonce, secret)
    key = suite.aead_key(suite.expand(prk, b"key", suite.key_bytes))
    return AeadSequence(key, suite.expand(prk, b"nonce", suite.nonce_bytes))


def _peek_varint(raw: Buffer, position: int) -> tuple[int, int]:
    """Value and the position after it; (0, -1) where it is not there whole."""
    if position >= len(raw):
        return 0, -1
    size = 1 << (raw[position] >> 6)
    end = position + size
    if end > len(raw):
        return 0, -1
    return int.from_bytes(raw[position:end], "big") & ((1 << (8 * size - 2)) - 1), end


def _frame(ct: bytes, final: bool) -> tuple[bytes, bytes]:
    return (b"\x00" if final else render_varint(len(ct))), ct


def _info(header: bytes) -> bytes:
    return _REQUEST_LABEL + b"\x00" + header


def _secret_bytes(suite: Suite) -> int:
    return max(suite.nonce_bytes, suite.key_bytes)

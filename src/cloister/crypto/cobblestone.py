"""Cobblestone-256: random-access reading and streaming writing of C2SP chunked-encryption.

Layout of a message, n = plaintext bytes:

========================= ============== ==========================================================
offset                    size           field
========================= ============== ==========================================================
0                         24             salt
24                        32             commitment
56 + k * 16400            16384          chunk k: AES-256-GCM ciphertext under base nonce XOR k
56 + k * 16400 + 16384    16             tag of chunk k
56 + (n // 16384) * 16400 n % 16384 + 16 final chunk, shorter than the others, maybe empty; its tag
========================= ============== ==========================================================

``key || base nonce || commitment = HKDF-Expand-SHA-512(input key, "c2sp.org/chunked-encryption@v1+" ||
"AEAD_AES_256_GCM" || 0x00 || salt || context)``. The final chunk is always shorter than the others, which is
what tells the end: a message that was cut or extended has no genuine final chunk.

Source: C2SP chunked-encryption v1, https://c2sp.org/chunked-encryption
"""

from __future__ import annotations

import collections
import contextlib
import hmac
import io
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from cloister.crypto.prefault import prefaulted
from cloister.crypto.sources import Source, open_source
from cloister.errors import BadCiphertext, MalformedInput

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

CHUNK_BYTES = 16384
TAG_BYTES = 16
SALT_BYTES = 24
COMMITMENT_BYTES = 32
HEADER_BYTES = SALT_BYTES + COMMITMENT_BYTES
KEY_BYTES = 32
NONCE_BYTES = 12
MAX_CHUNKS = 1 << 38

SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
_INFO = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"
_BATCH_CHUNKS = 256
_WRITE_SLAB_BYTES = 64 * CHUNK_BYTES


def ciphertext_bytes(plaintext_bytes: int) -> int:
    """Length of the message that carries so many bytes of plaintext.

    Raises:
        MalformedInput: negative, or over 4 PiB - 1.
    """
    if not 0 <= plaintext_bytes < MAX_CHUNKS * CHUNK_BYTES:
        raise MalformedInput(f"no message carries {plaintext_bytes} bytes of plaintext")
    return HEADER_BYTES + plaintext_bytes + TAG_BYTES * (plaintext_bytes // CHUNK_BYTES + 1)


def plaintext_bytes(ciphertext_bytes: int) -> int:
    """Length of the plaintext in a message of so many bytes.

    Raises:
        MalformedInput: no message has this length; a truncated one may.
    """
    full, rest = divmod(ciphertext_bytes - HEADER_BYTES, SEALED_CHUNK_BYTES)
    if full < 0 or rest < TAG_BYTES or full >= MAX_CHUNKS:
        raise MalformedInput(f"no message has a length of {ciphertext_bytes} bytes; is it truncated?")
    return full * CHUNK_BYTES + rest - TAG_BYTES


class CobblestoneReader(io.RawIOBase):
    """The plaintext of one message as a seekable, read-only file.

    Opening checks the commitment and decrypts the final chunk, so that ``size`` and every seek from the end
    are authenticated from the start. Each chunk is authenticated before a byte of it is given out. Whole
    chunks are decrypted straight into the caller's buffer; only the ends of an unaligned read go through a
    chunk of our own. When a read fails, the part of the caller's buffer that it was for is all zeros.

    One thread at a time, as with every file object.

    Args:
        source: buffer or seekable binary file; the caller keeps it open.
        key: 32-byte input key.
        context: what the message was bound to.
        offset: where the message begins in the source.
        length: of the message; None means to the end of the source.
    Raises:
        BadCiphertext: a length that no message has, another key or context, or a false final chunk.
    """

    def __init__(
        self,
        source: ReadableBuffer | BinaryIO,
        *,
        key: bytes,
        context: bytes,
        offset: int = 0,
        length: int | None = None,
    ) -> None:
        super().__init__()
        self._source: Source = open_source(source)
        self._offset = offset
        self._input_key, self._context = key, context
        try:
            self.size = plaintext_bytes(self._source.length - offset if length is None else length)
        except MalformedInput as error:
            raise BadCiphertext(error.message) from error
        header = bytes(self._source.read(offset, HEADER_BYTES))
        chunk_key, base_nonce, commitment = _derive(key, header[:SALT_BYTES], context)
        if not hmac.compare_digest(commitment, header[SALT_BYTES:]):
            raise BadCiphertext("the key or the context is not the one that this message was encrypted with")
        self._header = header
        self._aead = AESGCM(chunk_key)
        self._base_nonce = int.from_bytes(base_nonce, "big")
        self._position = 0
        self._cached = bytearray(CHUNK_BYTES)
        self._cached_index = -1
        self._sequential: Cobblestone256Decryptor | None = None
        self._sequential_next = 0
        self._load(self.size // CHUNK_BYTES)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in the plaintext."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move in the plaintext; may go past its end, where reading gives nothing."""
        self._check_open()
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
        if start is None or start + offset < 0:
            raise ValueError(f"cannot seek to {offset} with whence {whence}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer from the position on, entirely unless the plaintext ends before.

        Raises:
            BadCiphertext: a chunk is not genuine; the buffer is zeros, the position stays.
        """
        self._check_open()
        whole = memoryview(buffer)
        if not whole.nbytes or self._position >= self.size:
            return 0
        view = whole.cast("B")[: self.size - self._position]
        try:
            with prefaulted(view):
                self._fill(view)
        except BaseException:
            _wipe(view)
            raise
        self._position += len(view)
        return len(view)

    def readall(self) -> bytes:
        """Everything from the position to the end."""
        buffer = bytearray(max(0, self.size - self._position))
        self.readinto(buffer)
        return bytes(buffer)

    def close(self) -> None:
        """Forget the chunk that is held. The source stays open."""
        if not self.closed:
            _wipe(memoryview(self._cached))
            self._cached_index = -1
            self._sequential = None
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _fill(self, view: memoryview) -> None:
        position, done = self._position, 0
        while done < len(view):
            index, skip = divmod(position + done, CHUNK_BYTES)
            chunks = 0 if skip else (len(view) - done) // CHUNK_BYTES
            if chunks:
                self._decrypt_run(index, view[done : done + chunks * CHUNK_BYTES])
                done += chunks * CHUNK_BYTES
            else:
                self._load(index)
                count = min(CHUNK_BYTES - skip, len(view) - done)
                view[done : done + count] = memoryview(self._cached)[skip : skip + count]
                done += count

    def _load(self, index: int) -> None:
        """Hold one chunk, which may be the final one."""
        if index == self._cached_index:
            return
        self._cached_index = -1
        length = min(CHUNK_BYTES, self.size - index * CHUNK_BYTES)
        sealed = self._source.read(self._offset_of(index), length + TAG_BYTES)
        with _translated(index):
            self._aead.decrypt_into(self._nonce(index), sealed, None, memoryview(self._cached)[:length])
        self._note_genuine(index, memoryview(sealed))
        self._cached_index = index

    def _decrypt_run(self, first: int, out: memoryview) -> None:
        """Decrypt whole chunks into a buffer of exactly their size."""
        sealed_bytes = len(out) // CHUNK_BYTES * SEALED_CHUNK_BYTES
        done = 0
        for piece in self._source.pieces(self._offset_of(first), sealed_bytes, SEALED_CHUNK_BYTES):
            chunks = len(piece) // SEALED_CHUNK_BYTES
            index = first + done
            target = out[done * CHUNK_BYTES : (done + chunks) * CHUNK_BYTES]
            with _translated(index):
                if not self._decrypt_in_order(index, piece, target):
                    self._decrypt_anywhere(index, piece, target)
            self._note_genuine(index, piece)
            done += chunks
            del piece  # unmaps a window of a file before the next one is mapped

    def _note_genuine(self, first: int, sealed: memoryview) -> None:
        """Called with the bytes of each run of chunks that was authenticated; for those who inherit."""

    def _decrypt_in_order(self, first: int, sealed: memoryview, out: memoryview) -> bool:
        """Let the library's own decryptor, a tenth faster than calls from here, do reads from the start.

        It can only go through a message in order; returns False for a chunk that is not its next one.
        """
        if first == 0:
            self._sequential = Cobblestone256Decryptor(self._input_key, self._context)
            self._sequential.update_into(self._header, bytearray())
        elif self._sequential is None or first != self._sequential_next:
            return False
        decryptor, self._sequential = self._sequential, None  # dropped for good if this raises
        decryptor.update_into(sealed, out)
        self._sequential = decryptor
        self._sequential_next = first + len(out) // CHUNK_BYTES
        return True

    def _decrypt_anywhere(self, first: int, sealed: memoryview, out: memoryview) -> None:
        for start in range(0, len(out) // CHUNK_BYTES, _BATCH_CHUNKS):
            batch = range(start, min(start + _BATCH_CHUNKS, len(out) // CHUNK_BYTES))
            # A C-level loop on one thread. More threads are slower: each chunk takes Python's lock twice, and
            # waking a thread that waits for it takes longer than decrypting the chunk.
            calls = map(
                self._aead.decrypt_into,
                [self._nonce(first + i) for i in batch],
                [sealed[i * SEALED_CHUNK_BYTES : (i + 1) * SEALED_CHUNK_BYTES] for i in batch],
                itertools.repeat(None),
                [out[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES] for i in batch],
            )
            collections.deque(calls, maxlen=0)

    def _offset_of(self, index: int) -> int:
        return self._offset + HEADER_BYTES + index * SEALED_CHUNK_BYTES

    def _nonce(self, index: int) -> bytes:
        return (self._base_nonce ^ index).to_bytes(NONCE_BYTES, "big")


class Writable(Protocol):
    """What a CobblestoneWriter needs of its target: ``write`` takes all that it is given."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Take all of ``data``."""
        ...


class CobblestoneWriter:
    """Encrypts one message into a binary file as it comes in.

    A message is whole only after ``finish``. As a context manager it finishes by itself, except on an error:
    then what was written is truncated, and no reader accepts it.

    Args:
        target: a buffered binary file, for example; the caller keeps it open.
        key: 32-byte input key.
        context: what the message is bound to; the reader must give the same.
    """

    def __init__(self, target: Writable, *, key: bytes, context: bytes) -> None:
        self._target = target
        self._encryptor = Cobblestone256Encryptor(key, context)
        self._slab = memoryview(bytearray(ciphertext_bytes(_WRITE_SLAB_BYTES + CHUNK_BYTES)))

    def write(self, data: ReadableBuffer) -> int:
        """Encrypt more of the plaintext; returns its length."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _WRITE_SLAB_BYTES):
            count = self._encryptor.update_into(view[start : start + _WRITE_SLAB_BYTES], self._slab)
            self._target.write(self._slab[:count])
        return len(view)

    def finish(self) -> None:
        """Write the final chunk."""
        self._target.write(self._encryptor.finalize())

    def __enter__(self) -> CobblestoneWriter:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self.finish()


def _derive(key: bytes, salt: bytes, context: bytes) -> tuple[bytes, bytes, bytes]:
    """Chunk key, base nonce and commitment."""
    if len(key) != KEY_BYTES:
        raise MalformedInput(f"a Cobblestone-256 key has {KEY_BYTES} bytes, found {len(key)}")
    length = KEY_BYTES + NONCE_BYTES + COMMITMENT_BYTES
    derived = HKDFExpand(algorithm=SHA512(), length=length, info=_INFO + salt + context).derive(key)
    return derived[:KEY_BYTES], derived[KEY_BYTES:-COMMITMENT_BYTES], derived[-COMMITMENT_BYTES:]


@contextlib.contextmanager
def _translated(index: int) -> Iterator[None]:
    try:
        yield
    except InvalidTag as error:
        raise BadCiphertext(f"changed, reordered or truncated at or after chunk {index}") from error


def _wipe(view: memoryview) -> None:
    zeros = bytes(min(len(view), 1 << 20))
    for start in range(0, len(view), 1 << 20):
        part = view[start : start + (1 << 20)]
        part[:] = zeros[: len(part)]

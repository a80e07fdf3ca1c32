"""The digest of a container that is being read, bound to what was read.

SHA-256 goes over the file on a thread of its own while the payload is decrypted. The two do not read the same
bytes, and the file may change in between. So both note the tags of the chunks that they saw: a container with
the same header, salt and tags as the chunks that were authenticated is the one that they were read from, as
nobody but the holder of the data key can make another one with any of them.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import threading

from cloister.crypto.cobblestone import CHUNK_BYTES, HEADER_BYTES, SEALED_CHUNK_BYTES, TAG_BYTES
from cloister.errors import BadCiphertext, ConfigError
from cloister.seal.container import VerifiedHeader

_SLAB_CHUNKS = 64
_NONE = bytes(TAG_BYTES)


class ChunkTags:
    """The tags of a payload's chunks, as far as they were noted."""

    def __init__(self, plaintext_bytes: int) -> None:
        self._tags = bytearray((plaintext_bytes // CHUNK_BYTES + 1) * TAG_BYTES)

    def note(self, first: int, sealed: memoryview) -> None:
        """Note the tags of consecutive chunks, the last of which may be a short one."""
        whole, rest = divmod(len(sealed), SEALED_CHUNK_BYTES)
        start, end = first * TAG_BYTES, (first + whole) * TAG_BYTES
        for byte in range(TAG_BYTES if whole else 0):
            column = sealed[CHUNK_BYTES + byte : whole * SEALED_CHUNK_BYTES : SEALED_CHUNK_BYTES]
            self._tags[start + byte : end : TAG_BYTES] = column.tobytes()
        if rest >= TAG_BYTES:
            self._tags[end : end + TAG_BYTES] = sealed[-TAG_BYTES:]

    def within(self, other: ChunkTags) -> bool:
        """Whether ``other`` has every tag that was noted here."""
        if self._tags == other._tags:
            return True
        for start in range(0, len(self._tags), TAG_BYTES):
            tag = self._tags[start : start + TAG_BYTES]
            if tag not in (_NONE, other._tags[start : start + TAG_BYTES]):
                return False
        return True


class DigestThread:
    """SHA-256 of an open container, on a second core: Python's lock is free while the library hashes."""

    def __init__(self, container: io.FileIO, verified: VerifiedHeader) -> None:
        self._container = container
        self._verified = verified
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._before = b""
        self._tags = ChunkTags(verified.header.plaintext_bytes)
        self._whole = False
        self._found = ""
        self._reason = "it was closed before"

    def start(self) -> None:
        """May be called any number of times."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cloister-digest")
            self._thread.start()

    def stop(self) -> None:
        """Returns when the thread reads no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self, stream_header: bytes, genuine: ChunkTags) -> str:
        """The digest in hexadecimal.

        Args:
            stream_header: salt and commitment of the payload that is being read.
            genuine: the tags of its chunks that were authenticated.
        Raises:
            BadCiphertext: they are not of the file that was hashed.
            ConfigError: the file could not be read, or was closed before it was hashed.
        """
        if self._thread is not None:
            self._thread.join()
        if not self._found:
            raise ConfigError(f"cannot take a container's digest: {self._reason}")
        offset = self._verified.stream_offset
        context = hashlib.sha256(self._before[:offset]).digest()
        same = hmac.compare_digest(context, self._verified.context) and self._before[offset:] == stream_header
        if not (self._whole and same) or not genuine.within(self._tags):
            raise BadCiphertext("the container changed while it was read")
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._hash()
        except OSError as error:
            self._reason = f"{error.strerror}"

    def _hash(self) -> str:
        """Empty if it was stopped."""
        hasher = hashlib.sha256()
        self._before = self._read(0, bytearray(self._verified.stream_offset + HEADER_BYTES)).tobytes()
        hasher.update(self._before)
        offset, first = len(self._before), 0
        end = self._verified.stream_offset + self._verified.stream_bytes
        slab = bytearray(_SLAB_CHUNKS * SEALED_CHUNK_BYTES)
        while part := self._read(offset, slab):
            if self._stopped.is_set():
                return ""
            hasher.update(part)
            self._tags.note(first, part[: max(0, end - offset)])
            offset, first = offset + len(part), first + _SLAB_CHUNKS
        self._whole = offset == end
        return hasher.hexdigest()

    def _read(self, offset: int, slab: bytearray) -> memoryview:
        """As much of the slab as the file has."""
        view, done = memoryview(slab), 0
        while done < len(slab) and (
            count := os.preadv(self._container.fileno(), [view[done:]], offset + done)
        ):
            done += count
        return view[:done]

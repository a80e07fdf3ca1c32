"""Seal a file: signed header, then the payload encrypted as it is read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from cloister.crypto.cobblestone import CobblestoneWriter
from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError, MalformedInput
from cloister.seal.container import SealedHeader, render_header
from cloister.seal.signing import SigningKey

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SLAB_BYTES = 1 << 20
BLOCK_BYTES = 8 << 20
"""Containers are written in blocks of this size, at multiples of it: the kernel then caches them in large
pages, from which a model is decrypted a fifth faster."""


def seal_file(
    source: Path,
    target: Path,
    *,
    key: SecretKey,
    signer: SigningKey,
    name: str,
    version: str,
    sequence: int,
    kind: Literal["mar", "safetensors", "file"],
    key_uri: str,
    key_version: int = 1,
    created: datetime | None = None,
    progress: Callable[[int], None] | None = None,
) -> SealedHeader:
    """Write a sealed container, whole or not at all, readable by all: it is ciphertext.

    Args:
        key: the data key; give every container its own.
        signer: the model owner's key.
        key_uri: ``kbs:///repository/type/tag`` under which a key broker has ``key``.
        created: aware time; now by default.
        progress: called with the number of plaintext bytes done so far.
    Returns:
        The header as written.
    Raises:
        MalformedInput: a field is not of its form, or the source changed while it was read.
        ConfigError: a file cannot be read or written.
    """
    with _named_errors(), source.open("rb", buffering=0) as plain:
        return seal_parts(
            _slabs(plain),
            os.fstat(plain.fileno()).st_size,
            target,
            key=key,
            signer=signer,
            name=name,
            version=version,
            sequence=sequence,
            kind=kind,
            key_uri=key_uri,
            key_version=key_version,
            created=created,
            progress=progress,
        )


def seal_parts(
    parts: Iterable[ReadableBuffer],
    plaintext_bytes: int,
    target: Path,
    *,
    key: SecretKey,
    signer: SigningKey,
    name: str,
    version: str,
    sequence: int,
    kind: Literal["mar", "safetensors", "file"],
    key_uri: str,
    key_version: int = 1,
    created: datetime | None = None,
    progress: Callable[[int], None] | None = None,
) -> SealedHeader:
    """As ``seal_file``, of a payload that comes in parts and never has to lie in a file.

    Args:
        parts: bytes in order; each is asked for when the one before is encrypted.
        plaintext_bytes: how many there are in all.
    """
    with _named_errors(), replacing(target, mode=0o644) as sealed:
        header = SealedHeader(
            name=name,
            version=version,
            sequence=sequence,
            kind=kind,
            key=key_uri,
            key_version=key_version,
            plaintext_bytes=plaintext_bytes,
            created=(created or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            signer=signer.public,
        )
        before = render_header(header, signer)
        aligned = _AlignedWriter(sealed)
        aligned.write(before)
        with CobblestoneWriter(aligned, key=key.raw, context=hashlib.sha256(before).digest()) as payload:
            done = 0
            for part in parts:
                done += payload.write(part)
                if done > header.plaintext_bytes:
                    break
                if progress:
                    progress(done)
            if done != header.plaintext_bytes:
                raise MalformedInput(f"{name} changed size while it was sealed", hint="seal it again")
        aligned.flush()
    return header


@contextlib.contextmanager
def replacing(target: Path, *, mode: int) -> Iterator[BinaryIO]:
    """A new file in the target's folder that takes the target's place, synced, when the block ends well."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:64]}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _AlignedWriter:
    """Writes whole blocks at multiples of their size."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self._filled = 0

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data)
        done = 0
        while done < len(view):
            count = min(len(view) - done, BLOCK_BYTES - self._filled)
            self._block[self._filled : self._filled + count] = view[done : done + count]
            done += count
            self._filled += count
            if self._filled == BLOCK_BYTES:
                self.flush()
        return done

    def flush(self) -> None:
        self._target.write(self._block[: self._filled])
        self._filled = 0


def _slabs(file: io.FileIO) -> Iterator[memoryview]:
    slab = memoryview(bytearray(_SLAB_BYTES))
    while count := file.readinto(slab):
        yield slab[:count]


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot seal: {error.filename or 'file'}: {error.strerror}") from error

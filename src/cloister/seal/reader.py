"""Read what a sealed container holds, without ever holding all of it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

from cloister.crypto.cobblestone import CobblestoneReader
from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError
from cloister.seal.container import SealedHeader, VerifiedHeader, read_header
from cloister.seal.digest import ChunkTags, DigestThread
from cloister.seal.signing import TrustedSigners
from cloister.seal.writer import replacing

_SLAB_BYTES = 1 << 20


class SealedFile(CobblestoneReader):
    """The payload of a verified container as a seekable file, for ``zipfile.ZipFile`` and other readers.

    Closing it closes the container.
    """

    def __init__(self, container: io.FileIO, verified: VerifiedHeader, key: SecretKey) -> None:
        self._container = container
        self._genuine = ChunkTags(verified.header.plaintext_bytes)
        self._digest = DigestThread(container, verified)
        super().__init__(
            container,
            key=key.raw,
            context=verified.context,
            offset=verified.stream_offset,
            length=verified.stream_bytes,
        )
        self.header: SealedHeader = verified.header

    @property
    def digest(self) -> str:
        """``container_digest`` of this very file; waits until all of it has been read once.

        Raises:
            BadCiphertext: what has been read so far is not what the digest was taken of.
            ConfigError: the file cannot be read, or was closed before.
        """
        self.start_digest()
        return self._digest.wait(self._header, self._genuine)

    def start_digest(self) -> None:
        """Begin with ``digest`` on a thread of its own, beside reading. May be called any number of times."""
        if not self._container.closed:
            self._digest.start()

    def _note_genuine(self, first: int, sealed: memoryview) -> None:
        self._genuine.note(first, sealed)

    def close(self) -> None:
        """Forget the plaintext that is held, close the container, and give up a digest that is not done."""
        super().close()
        self._digest.stop()
        self._container.close()


def open_sealed(path: Path, *, key: SecretKey, trusted: TrustedSigners) -> SealedFile:
    """Verify a container's header and open its payload.

    Returns:
        SealedFile; its ``header`` is verified, its size authenticated. Other bytes are when they are read.
    Raises:
        MalformedInput, UntrustedRoot, BadSignature, BadCiphertext: see ``read_header``.
        BadCiphertext: the key is another one, or the payload is not genuine.
        ConfigError: the file cannot be read.
    """
    container = _open(path)
    try:
        return SealedFile(container, read_header(container, trusted), key)
    except BaseException:
        container.close()
        raise


def container_digest(path: Path) -> str:
    """SHA-256 of a whole container file in hexadecimal: what evidence reports of a loaded model.

    It names these exact bytes, so two seals of one model have different digests. It says nothing of who
    sealed them; that is what the header's signature is for.

    Raises:
        ConfigError: the file cannot be read.
    """
    with _open(path) as container:
        return _digest(container)


def unseal_file(
    source: Path,
    target: Path,
    *,
    key: SecretKey,
    trusted: TrustedSigners,
    progress: Callable[[int], None] | None = None,
) -> SealedHeader:
    """Write the plaintext to a file that only its owner can read, whole or not at all.

    For a model owner's own machine: a server never does this.

    Raises:
        The errors of ``open_sealed``.
    """
    with open_sealed(source, key=key, trusted=trusted) as sealed:
        slab = memoryview(bytearray(_SLAB_BYTES))
        try:
            with replacing(target, mode=0o600) as plain:
                while count := sealed.readinto(slab):
                    plain.write(slab[:count])
                    if progress:
                        progress(sealed.tell())
        except OSError as error:
            raise ConfigError(f"cannot write {target}: {error.strerror}") from error
        return sealed.header


def _open(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path, "rb")
    except OSError as error:
        raise ConfigError(f"cannot read container {path}: {error.strerror}") from error


def _digest(container: io.FileIO) -> str:
    hasher = hashlib.sha256()
    slab = memoryview(bytearray(_SLAB_BYTES))
    offset = 0
    while count := os.preadv(container.fileno(), [slab], offset):
        hasher.update(slab[:count])
        offset += count
    return hasher.hexdigest()

"""Read what a sealed container holds, without ever holding all of it."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

from cloister.crypto.cobblestone import CobblestoneReader
from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError
from cloister.seal.container import SealedHeader, VerifiedHeader, read_header
from cloister.seal.signing import TrustedSigners
from cloister.seal.writer import replacing

_SLAB_BYTES = 1 << 20


class SealedFile(CobblestoneReader):
    """The payload of a verified container as a seekable file, for ``zipfile.ZipFile`` and other readers.

    Closing it closes the container.
    """

    def __init__(self, container: io.FileIO, verified: VerifiedHeader, key: SecretKey) -> None:
        self._container = container
        super().__init__(
            container,
            key=key.raw,
            context=verified.context,
            offset=verified.stream_offset,
            length=verified.stream_bytes,
        )
        self.header: SealedHeader = verified.header
        self._digest = _Digest(container)

    @property
    def digest(self) -> str:
        """``container_digest`` of this very file; waits until all of it has been read once.

        Raises:
            ConfigError: the file cannot be read, or was closed before.
        """
        self.start_digest()
        return self._digest.wait()

    def start_digest(self) -> None:
        """Begin with ``digest`` on a thread of its own, beside reading. May be called any number of times."""
        if not self._container.closed:
            self._digest.start()

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


class _Digest:
    """SHA-256 of an open container, on a second core: Python's lock is free while the library hashes."""

    def __init__(self, container: io.FileIO) -> None:
        self._container = container
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._found = ""
        self._reason = "it was closed before"

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cloister-digest")
            self._thread.start()

    def wait(self) -> str:
        if self._thread is not None:
            self._thread.join()
        if not self._found:
            raise ConfigError(f"cannot take a container's digest: {self._reason}")
        return self._found

    def stop(self) -> None:
        """Returns when the thread reads no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._found = _digest(self._container, self._stopped.is_set)
        except OSError as error:
            self._reason = f"{error.strerror}"


def _digest(container: io.FileIO, stopped: Callable[[], bool] = lambda: False) -> str:
    """Empty if it was stopped."""
    hasher = hashlib.sha256()
    slab = memoryview(bytearray(_SLAB_BYTES))
    offset = 0
    while count := os.preadv(container.fileno(), [slab], offset):
        if stopped():
            return ""
        hasher.update(slab[:count])
        offset += count
    return hasher.hexdigest()

"""A KEK in a file that only its owner can read: 32 bytes, or 32 for each generation while one is rotated.

The newest generation is the last one. A rotation appends one, re-wraps every record, and then keeps only
the last; at each moment the file opens every record. A running broker looks at the file again when it has
changed, so it follows a rotation that another process makes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

from cloister.crypto.keys import KEY_BYTES, SecretKey
from cloister.errors import BadCiphertext, ConfigError
from cloister.kbs.kek.gcm import gcm_open, gcm_seal
from cloister.kbs.kek.provider import WrappedKey, context
from cloister.kbs.owner_files import make_folder, read_private, replace_file, write_new

MAX_GENERATIONS = 16


class FileKek:
    """See the module; the file is made on first use."""

    local = True

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            make_folder(path.parent)
            write_new(path, self._encode([SecretKey.generate()]))
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, SecretKey] = {}
        self._newest = ""
        self._current()

    @property
    def key_id(self) -> str:
        """See ``KekProvider``."""
        return self._current()[0]

    def holds(self, kek_id: str) -> bool:
        """See ``KekProvider``."""
        return kek_id in self._current()[1]

    def wrap(self, key: SecretKey, resource: str) -> WrappedKey:
        """See ``KekProvider``."""
        newest, keys = self._current()
        return WrappedKey(newest, gcm_seal(keys[newest], key.raw, context("cloister-key", resource)))

    def unwrap(self, wrapped: WrappedKey, resource: str) -> SecretKey:
        """See ``KekProvider``."""
        kek = self._current()[1].get(wrapped.kek_id)
        if kek is None:
            raise BadCiphertext(f"{resource} is wrapped under KEK {wrapped.kek_id}, which {self.path} lacks")
        return SecretKey(gcm_open(kek, wrapped.data, context("cloister-key", resource)))

    def renew(self) -> str:
        """See ``KekProvider``."""
        _, keys = self._current()
        if len(keys) >= MAX_GENERATIONS:
            raise ConfigError(f"{self.path} holds {len(keys)} generations", hint="finish the last rotation")
        fresh = SecretKey.generate()
        replace_file(self.path, self._encode([*keys.values(), fresh]))
        return self._current()[0]

    def retire(self) -> None:
        """See ``KekProvider``."""
        newest, keys = self._current()
        replace_file(self.path, self._encode([keys[newest]]))
        self._current()

    def newest(self) -> SecretKey:
        """The KEK itself, for its owner to keep elsewhere (``cloister.kbs.recovery``)."""
        newest, keys = self._current()
        return keys[newest]

    def __repr__(self) -> str:
        return f"FileKek({self._newest})"

    def _encode(self, keys: Sequence[SecretKey]) -> bytes:
        """The file's content for these generations, the newest last."""
        return b"".join(key.raw for key in keys)

    def _decode(self, raw: bytes) -> list[SecretKey]:
        """Inverse of ``_encode``."""
        if not raw or len(raw) % KEY_BYTES:
            raise ConfigError(f"{self.path} does not hold a KEK: 32 bytes each, found {len(raw)}")
        return [SecretKey(raw[at : at + KEY_BYTES]) for at in range(0, len(raw), KEY_BYTES)]

    def _current(self) -> tuple[str, dict[str, SecretKey]]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from error
        stamp = (status.st_mtime_ns, status.st_ino, status.st_mode)
        with self._lock:
            if stamp != self._stamp:
                parts = self._decode(read_private(self.path))
                if not 0 < len(parts) <= MAX_GENERATIONS:
                    raise ConfigError(f"{self.path} holds {len(parts)} KEKs, expected 1 to {MAX_GENERATIONS}")
                self._keys = {file_key_id(key): key for key in parts}
                self._newest, self._stamp = file_key_id(parts[-1]), stamp
            return self._newest, self._keys


def file_key_id(key: SecretKey) -> str:
    """Public name of a KEK in a file."""
    return "file:" + hashlib.sha256(b"cloister-kek\0" + key.raw).hexdigest()[:16]


def file_provider(rest: str) -> FileKek:
    """``file:/path`` or ``file:///path``."""
    return FileKek(file_path(rest))


def file_path(rest: str) -> Path:
    """The path in a ``file:`` URI, after the colon."""
    return Path(rest.removeprefix("//"))

"""A 32-byte secret as a type of its own, so that it cannot be printed, pickled or compared by accident."""

from __future__ import annotations

import hmac
import secrets
from typing import NoReturn, SupportsIndex

from cloister.errors import MalformedInput

KEY_BYTES = 32


class SecretKey:
    """One 256-bit symmetric key: a DEK that encrypts a model, or a KEK that wraps DEKs.

    ``raw`` is the only way to the bytes. Nothing else shows them: not ``repr``, not ``format``, not pickle,
    and two keys are compared in constant time.

    Raises:
        MalformedInput: not exactly 32 bytes.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise MalformedInput(f"a key has {KEY_BYTES} bytes, found {len(raw)}")
        self._raw = bytes(raw)

    @classmethod
    def generate(cls) -> SecretKey:
        """A new key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @property
    def raw(self) -> bytes:
        """The secret itself."""
        return self._raw

    def __repr__(self) -> str:
        return "SecretKey(redacted)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    __hash__ = None  # type: ignore[assignment]  # a hash of the secret would leak into dict and set layouts

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a SecretKey cannot be pickled or copied")

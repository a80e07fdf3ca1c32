"""What a provider of key-encrypting keys does. One file per provider; the table is in ``ring``.

A provider may hold several generations of its KEK at once. It wraps under the newest one and unwraps under
any that it still has, so a rotation needs no moment at which nothing works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cloister.crypto.keys import SecretKey

MAX_KEK_ID_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key under a KEK."""

    kek_id: str
    """Public name of the KEK and its generation; stored beside everything that it wraps."""
    data: bytes


class KekProvider(Protocol):
    """Wraps and unwraps data keys under one key-encrypting key."""

    @property
    def local(self) -> bool:
        """Whether it answers at once, without a device or a network."""
        ...

    @property
    def key_id(self) -> str:
        """Name of the KEK that ``wrap`` uses now."""
        ...

    def holds(self, kek_id: str) -> bool:
        """Whether ``kek_id`` is a generation of this KEK, the newest or an older one."""
        ...

    def wrap(self, key: SecretKey, resource: str) -> WrappedKey:
        """Wrap a data key for one resource version.

        Raises:
            KeyUnavailable: the provider does not answer.
        """
        ...

    def unwrap(self, wrapped: WrappedKey, resource: str) -> SecretKey:
        """Inverse of ``wrap``.

        Raises:
            BadCiphertext: wrapped by another KEK, for another resource, or changed.
            KeyUnavailable: the provider does not answer.
        """
        ...

    def renew(self) -> str:
        """Begin a new generation, under which everything is wrapped from now on. Returns its name.

        Raises:
            ConfigError: this provider cannot; the hint says what to do instead.
            KeyUnavailable: the provider does not answer.
        """
        ...

    def retire(self) -> None:
        """Forget every older generation. Nothing may be wrapped under one any more.

        Raises:
            KeyUnavailable: the provider does not answer.
        """
        ...


def context(purpose: str, resource: str) -> bytes:
    """What a ciphertext is bound to: its purpose and the resource version that it is for."""
    return f"{purpose}\0{resource}".encode()

"""The gateway's end of OHTTP: its keys, and one way to open a request. No HTTP, no I/O.

Who is outside learns one of four things: opened, key not in use (``UnknownKeyConfig``), seen before
(``Replayed``), or "cannot be opened" (``BadCiphertext``), in the same words whichever step failed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from cloister.crypto.hpke import Aead, Kdf, Kem, PrivateKey, find_suite
from cloister.errors import BadCiphertext, ConfigError, MalformedInput, UnknownKeyConfig
from cloister.ohttp.capsule import (
    CapsuleHeader,
    KeyConfig,
    ResponseSealer,
    open_with,
    render_key_configs,
    request_enc,
)
from cloister.ohttp.chunked import RequestOpener
from cloister.ohttp.chunked import ResponseSealer as StreamSealer
from cloister.ohttp.replay import ReplayGuard

ALGORITHMS = (
    (Kdf.HKDF_SHA256, Aead.AES_128_GCM),
    (Kdf.HKDF_SHA256, Aead.AES_256_GCM),
    (Kdf.HKDF_SHA256, Aead.CHACHA20_POLY1305),
)
"""What each key is offered with, preferred first."""


@dataclass(frozen=True, slots=True)
class GatewayKey:
    """A private key under the id by which requests name it."""

    key_id: int
    private: PrivateKey
    algorithms: tuple[tuple[int, int], ...] = ALGORITHMS

    @classmethod
    def generate(cls, kem: Kem = Kem.X25519_HKDF_SHA256, *, besides: Sequence[int] = ()) -> Self:
        """A new key under a random id that is not one of ``besides``.

        The id is random so that a request to the former key, after a restart, is not taken for a forged one.
        """
        key_id = secrets.choice([number for number in range(256) if number not in besides])
        return cls(key_id, PrivateKey.generate(kem))

    @property
    def config(self) -> KeyConfig:
        """What callers are given."""
        return KeyConfig(self.key_id, self.private.public, self.algorithms)


class Gateway:
    """Opens sealed requests under any of its keys, each of them once.

    The first key is the current one, which evidence binds; the others are still accepted. What is remembered
    against replay outlives every key.
    """

    def __init__(
        self,
        keys: Sequence[GatewayKey],
        *,
        guard: ReplayGuard | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.key_config = b""
        """One RFC 9458 key configuration: the current key's."""
        self.key_configs = b""
        """The ``application/ohttp-keys`` document: every key, current first."""
        self._keys: dict[int, GatewayKey] = {}
        self._use(keys)
        self._guard = ReplayGuard() if guard is None else guard
        self._clock = clock

    @property
    def floor(self) -> float:
        """Requests that are dated so (seconds since 1970) or earlier may be replays that are forgotten."""
        return self._guard.floor

    @classmethod
    def generate(cls, kem: Kem = Kem.X25519_HKDF_SHA256) -> Self:
        """A gateway with one new key."""
        return cls((GatewayKey.generate(kem),))

    def rotate(self, key: GatewayKey | None = None) -> None:
        """Make ``key`` (a new one by default) the current one; of the others only the former is kept.

        Raises:
            ConfigError: its id is in use.
        """
        former = next(iter(self._keys.values()))
        new = key or GatewayKey.generate(former.private.kem, besides=tuple(self._keys))
        self._use((new, former))

    def drop_former(self) -> None:
        """Accept the current key only."""
        self._use(tuple(self._keys.values())[:1])

    def open(self, capsule: bytes) -> tuple[bytes, ResponseSealer]:
        """Decrypt an encapsulated request that was not seen before.

        What is inside is authentic but not parsed, and its date not checked: ``replay.check_date`` does that.

        Raises:
            UnknownKeyConfig: the key id or suite is not one that this gateway offers.
            Replayed: it was opened before.
            BadCiphertext: truncated, changed, or sealed to another key.
            Overloaded: replay protection is at its capacity.
        """
        try:
            header = CapsuleHeader.parse(capsule)
        except MalformedInput as error:
            raise BadCiphertext(_CANNOT_OPEN) from error
        key = self._find_key(header)
        try:
            suite = find_suite(header.kem_id, header.kdf_id, header.aead_id)
            enc = request_enc(capsule, suite)
            mark = self._guard.check_new(enc)
            request, sealer = open_with(key.private, suite, enc, capsule)
        except (BadCiphertext, MalformedInput) as error:
            raise BadCiphertext(_CANNOT_OPEN) from error
        # Only now, so that nobody without the key can fill the guard or burn another caller's request.
        self._guard.remember(mark, self._clock())
        return request, sealer

    def open_stream(self) -> StreamedRequest:
        """A chunked request, to be read as it comes."""
        return StreamedRequest(self._find_key, self._guard, self._clock)

    def _use(self, keys: Sequence[GatewayKey]) -> None:
        by_id = {key.key_id: key for key in keys}
        if not keys or len(by_id) != len(keys):
            raise ConfigError("a gateway needs at least one key, each under its own id")
        self._keys = by_id
        self.key_config = keys[0].config.render()
        self.key_configs = render_key_configs(key.config for key in keys)

    def _find_key(self, header: CapsuleHeader) -> GatewayKey:
        key = self._keys.get(header.key_id)
        offered = key is not None and (
            header.kem_id == key.private.kem and (header.kdf_id, header.aead_id) in key.algorithms
        )
        if key is None or not offered:
            raise UnknownKeyConfig(
                f"no key {header.key_id} for KEM 0x{header.kem_id:04x}, KDF 0x{header.kdf_id:04x}, "
                f"AEAD 0x{header.aead_id:04x}",
                hint="verify the service again to learn its current key",
            )
        return key


class StreamedRequest:
    """A chunked request at the gateway: opened piece by piece, and refused if it was seen before.

    It counts as seen from its first authentic piece on, so that nobody without the key can burn it.
    """

    def __init__(
        self,
        find_key: Callable[[CapsuleHeader], GatewayKey],
        guard: ReplayGuard,
        clock: Callable[[], float],
    ) -> None:
        self._find_key, self._guard, self._clock = find_key, guard, clock
        self._opener = RequestOpener()
        self._opening = False
        self._mark = 0
        self._remembered = False

    def receive(self, data: bytes) -> list[bytes]:
        """Take bytes in; the pieces of the message that they complete.

        Raises:
            UnknownKeyConfig, Replayed, BadCiphertext, Overloaded: as ``Gateway.open``.
        """
        try:
            pieces = self._opener.receive(data)
            if not self._opening and self._opener.header is not None and self._opener.enc:
                self._opening = True
                key = self._find_key(self._opener.header)
                self._mark = self._guard.check_new(self._opener.enc)
                pieces += self._opener.open_with(key.private)
        except (BadCiphertext, MalformedInput) as error:
            if self._opener.header is not None and not self._opening:
                self._find_key(self._opener.header)  # a suite that nobody here knows
            raise BadCiphertext(_CANNOT_OPEN) from error
        if pieces:
            self._remember()
        return pieces

    def finish(self) -> bytes:
        """The last piece.

        Raises:
            BadCiphertext: the stream was cut, or its end does not authenticate.
            Replayed, Overloaded: as ``receive``.
        """
        try:
            piece = self._opener.finish()
        except (BadCiphertext, MalformedInput) as error:
            raise BadCiphertext(_CANNOT_OPEN) from error
        if self._remembered:
            # Its date is checked now: what was forgotten by the time of its beginning could come again.
            self._guard.remember_longer(self._mark, self._clock())
        else:
            self._remember()
        return piece

    def response_sealer(self) -> StreamSealer:
        """What seals the answer, after the first piece."""
        return self._opener.response_sealer()

    def _remember(self) -> None:
        if not self._remembered:
            self._remembered = True
            self._guard.remember(self._mark, self._clock())


_CANNOT_OPEN = "the sealed request cannot be opened"

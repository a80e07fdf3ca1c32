"""Carries the bytes between a worker of this host and its connection to the frontend, both ways, unread.

Each side is read only as fast as the other one takes it, so that a slow model or a slow network holds back
the sender and fills no memory here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

HIGH_WATER_BYTES = 1 << 20


class End(asyncio.Protocol):
    """One side of the bridge."""

    def __init__(self, on_lost: Callable[[], object]) -> None:
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._other: End | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.write(data)

    def write(self, data: bytes) -> None:
        """Send on this side."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_writing(self) -> None:
        """This side takes no more for now: nothing more is read on the other one."""
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        """This side takes more again."""
        other = self._other
        if other is not None and other._transport is not None and not other._transport.is_closing():
            other._transport.resume_reading()

    def close(self) -> None:
        """Send what is queued, then end."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


def join(one: End, other: End) -> None:
    """Let what comes on each side go out on the other, also what came before."""
    one._other, other._other = other, one
    for source, target in ((one, other), (other, one)):
        for data in source._early:
            target.write(data)
        source._early.clear()

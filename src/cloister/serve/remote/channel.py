"""The joining connection: messages with limits and time limits, and the mutual proof at its start.

The proof goes in this order, so that a frontend spends nothing on somebody who has shown nothing:

1. Both sides say hello, with a nonce.
2. The worker host proves itself, and the frontend judges.
3. The frontend proves itself, and the worker host judges.

Whoever refuses says why in one line, and closes.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from cloister.errors import CloisterError, MalformedInput, PolicyDenied, TransportError
from cloister.serve.remote import messages
from cloister.serve.remote.messages import Hello, Opening, Proof, Refused, Role
from cloister.serve.remote.proof import (
    TITLES,
    Credentials,
    Demands,
    Peer,
    Transcript,
    check_hello,
    judge_proof,
    make_proof,
)
from cloister.serve.remote.tls import peer_spki

HELLO_S = 5.0
PROOF_S = 60.0
"""For evidence of the other side: its quoting service may be slow, and the vendor's service."""
MAX_WRITE_BYTES = 8 << 20
"""Whoever does not read so much is lost."""
_strangers = ThreadPoolExecutor(4, thread_name_prefix="cloister-joining")
Message = TypeVar("Message")
Result = TypeVar("Result")


class RefusedByPeer(PolicyDenied):
    """The other side refuses this one; ``again`` says whether to try later."""

    def __init__(self, refused: Refused, who: str) -> None:
        super().__init__(f"{who} refuses: {printable(refused.reason)}")
        self.again = refused.again


class Channel(asyncio.Protocol):
    """Messages over one connection. Sends never wait; whoever does not read is noticed by the heartbeat."""

    def __init__(self) -> None:
        self.address = "unknown"
        self.session: ssl.SSLObject | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._limit = messages.MAX_HELLO_BYTES
        self._paused = False
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None

    def send(self, message: Any) -> None:
        """Queue one message."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > MAX_WRITE_BYTES:
            self._transport.abort()
        else:
            self._transport.write(messages.encode(message))

    async def receive(self, kind: type[Message], *, limit: int, timeout_s: float) -> Message:
        """The next message, of the kind that may come now.

        Raises:
            MalformedInput: something else came.
            TransportError: nothing came in time, or the connection ended.
        """
        self._limit = limit
        try:
            async with asyncio.timeout(timeout_s):
                while (raw := self._take()) is None:
                    if self._lost:
                        raise TransportError("the connection ended")
                    self._go_on()
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError as error:
            raise TransportError(f"nothing was heard for {timeout_s:g} s") from error
        return messages.decode(raw, kind)

    def hand_over(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Give the connection, and what has come already, to ``protocol``."""
        transport = self._transport
        if transport is None or self._lost:
            raise TransportError("the connection ended")
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._buffer:
            protocol.data_received(bytes(self._buffer))
        self._go_on()
        self._transport = None
        return transport

    def close(self) -> None:
        """Send what is queued, then end."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    # The connection's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.session = transport.get_extra_info("ssl_object")
        self.address = str((transport.get_extra_info("peername") or ("unknown",))[0])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > self._limit + messages.PREFIX.size and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._wake()

    def _take(self) -> bytes | None:
        start = messages.PREFIX.size
        if len(self._buffer) < start:
            return None
        end = start + messages.message_bytes(bytes(self._buffer[:start]), self._limit)
        if len(self._buffer) < end:
            return None
        raw = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return raw

    def _go_on(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def connect(host: str, port: int, context: ssl.SSLContext, *, timeout_s: float) -> Channel:
    """A channel to a frontend, its TLS up.

    Raises:
        TransportError: it cannot be reached, or does not speak TLS here.
    """
    loop = asyncio.get_running_loop()
    channel = Channel()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(
                lambda: channel, host, port, ssl=context, ssl_handshake_timeout=timeout_s
            )
    except (OSError, TimeoutError) as error:
        reason = "no answer" if isinstance(error, TimeoutError) else (error.strerror or type(error).__name__)
        raise TransportError(
            f"cannot reach the frontend at {host} port {port}: {reason}",
            hint="is serve.worker_port set there?",
        ) from error
    if channel.session is not None and channel.session.selected_alpn_protocol() is not None:
        return channel
    channel.abort()
    raise TransportError(f"{host} port {port} is no frontend's worker port")


async def prove_each_other(
    channel: Channel, role: Role, *, own_spki: bytes, own: Credentials, demands: Demands
) -> tuple[Peer, Transcript]:
    """Steps 1 to 3 for the side ``role``; the other side has had a line of reason when this raises.

    Raises:
        RefusedByPeer: the other side refuses this one.
        PolicyDenied, VerificationError, MalformedInput: this side refuses the other one.
        TransportError: the connection ended, or the other side was silent.
    """
    other: Role = "worker" if role == "frontend" else "frontend"
    try:
        transcript = await _say_hello(channel, role, other, own_spki, demands)
        if role == "worker":
            channel.send(await _in_thread(make_proof, transcript, role, own))
        proof = await _receive(channel, Proof, other, limit=messages.MAX_PROOF_BYTES, timeout_s=PROOF_S)
        peer = await _in_thread(judge_proof, proof, transcript, other, demands, datetime.now(UTC))
        if role == "frontend":
            channel.send(await _in_thread(make_proof, transcript, role, own))
    except RefusedByPeer:
        channel.close()
        raise
    except CloisterError as error:
        channel.send(Refused(error.message[:1000], again=isinstance(error, TransportError)))
        channel.close()
        raise
    return peer, transcript


async def _say_hello(
    channel: Channel, role: Role, other: Role, own_spki: bytes, demands: Demands
) -> Transcript:
    spki = peer_spki(channel.session)
    if spki == own_spki:
        raise PolicyDenied("the other side has this side's own key")
    nonce = os.urandom(messages.NONCE_BYTES)
    channel.send(Hello(messages.VERSION, role, demands.mode, nonce))
    hello = await _receive(channel, Hello, other, limit=messages.MAX_HELLO_BYTES, timeout_s=HELLO_S)
    check_hello(hello, role=other, mode=demands.mode)
    ours, theirs = (nonce, own_spki), (hello.nonce, spki)
    frontend, worker = (ours, theirs) if role == "frontend" else (theirs, ours)
    return Transcript(
        mode=demands.mode,
        frontend_nonce=frontend[0],
        worker_nonce=worker[0],
        frontend_spki=frontend[1],
        worker_spki=worker[1],
    )


async def _receive(
    channel: Channel, kind: type[Message], other: Role, *, limit: int, timeout_s: float
) -> Message:
    opening: Any = Opening
    message: Any = await channel.receive(opening, limit=limit, timeout_s=timeout_s)
    if isinstance(message, Refused):
        raise RefusedByPeer(message, f"the {TITLES[other]} at {channel.address}")
    if not isinstance(message, kind):
        raise MalformedInput(f"expected {kind.__name__}, found {type(message).__name__}")
    return message


async def _in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    # Threads of their own: a stranger's proof may have the vendor's service asked, and whoever sends many of
    # these must not keep the server from loading a model.
    return await asyncio.get_running_loop().run_in_executor(_strangers, function, *arguments)


def printable(text: str) -> str:
    """Words of the other side as one line that can be shown and logged."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:500]

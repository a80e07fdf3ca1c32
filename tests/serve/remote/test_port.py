"""Tests of ``cloister.serve.remote.port`` and ``host``: real TLS on loopback, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import CloisterError, TransportError
from cloister.serve.frames import AnswerItem, Answers, FrameDecoder, Predict, RequestItem, encode_frame
from cloister.serve.model_config import ModelConfig
from cloister.serve.remote import port as port_module
from cloister.serve.remote.backend import RemoteWorker
from cloister.serve.remote.channel import Channel, RefusedByPeer, prove_each_other
from cloister.serve.remote.channel import connect as dial
from cloister.serve.remote.messages import Assign, Attach, Ended, FromFrontend, Leave, ModelKey, Offer, Ping
from cloister.serve.remote.port import WorkerPort
from cloister.serve.remote.proof import Credentials, Demands, Transcript
from cloister.serve.remote.tls import LinkKey, make_link_key
from tests.serve.remote.sides import attester, credentials, demands, make_platform

KEY = ModelKey("m", "1.0", "ab" * 32)
TOKEN = b"0123456789abcdef0123456789abcdef"
TIMEOUT_S = 1.0


@dataclass
class FakeModel:
    """A model of the frontend that counts its workers."""

    config: ModelConfig = field(default_factory=ModelConfig)
    attached: list[RemoteWorker] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    @property
    def workers(self) -> int:
        return len(self.attached)

    def attach(self, worker: RemoteWorker) -> None:
        self.attached.append(worker)
        worker.on_end = self._ended

    def detach(self, worker: RemoteWorker) -> None:
        self._stopping = asyncio.get_running_loop().create_task(worker.stop())

    def _ended(self, worker: RemoteWorker) -> None:
        self.attached.remove(worker)
        self.ends.append(worker.reason)


@dataclass
class Frontend:
    """A port with one model, on an address of its own."""

    port: WorkerPort
    number: int
    model: FakeModel

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.2", self.number


@contextlib.asynccontextmanager
async def frontend(own: Credentials, wanted: Demands, *, max_age_s: float = 0) -> AsyncIterator[Frontend]:
    """An open port."""
    sock = socket.create_server(("127.0.0.2", 0))
    model = FakeModel()
    models: Mapping[ModelKey, Any] = {KEY: model}
    port = WorkerPort(
        sock, make_link_key(), own, wanted, lambda: models, timeout_s=TIMEOUT_S, max_age_s=max_age_s
    )
    port.start()
    try:
        yield Frontend(port, sock.getsockname()[1], model)
    finally:
        await port.close()


@contextlib.asynccontextmanager
async def open_frontend() -> AsyncIterator[Frontend]:
    """In open mode, with the test's token."""
    async with frontend(credentials(None, token=TOKEN), demands(None, token=TOKEN)) as opened:
        yield opened


async def join(
    there: Frontend, own: Credentials | None = None, wanted: Demands | None = None
) -> tuple[Channel, LinkKey]:
    """A host that has joined and offered the model; with the token of open mode if nothing else is said."""
    own, wanted = own or credentials(None, token=TOKEN), wanted or demands(None, token=TOKEN)
    channel, key, _ = await join_as(there, own, wanted)
    return channel, key


async def join_as(there: Frontend, own: Credentials, wanted: Demands) -> tuple[Channel, LinkKey, Transcript]:
    """As ``join``, with what was proved."""
    key = make_link_key()
    channel = await connect(*there.address, key.join, timeout_s=5)
    _, transcript = await prove_each_other(channel, "worker", own_spki=key.spki, own=own, demands=wanted)
    channel.send(Offer("host", 0, frozenset({KEY.digest})))
    return channel, key, transcript


async def assigned(channel: Channel) -> Assign:
    """The next assignment."""
    kind: Any = FromFrontend
    while True:
        message: Any = await channel.receive(kind, limit=1 << 20, timeout_s=5)
        if isinstance(message, Assign):
            return message


class Echo(asyncio.Protocol):
    """A worker that answers with what it was asked."""

    def __init__(self) -> None:
        self._decoder: FrameDecoder[Any] = FrameDecoder(Predict)
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for message, payload in self._decoder.feed(data):
            items = [AnswerItem(item.number, 200, 0, item.body_bytes) for item in message.items]
            parts = encode_frame(Answers([b"\x90"], items), [bytes(payload)])
            self.transport.write(b"".join(parts))


async def bring(there: Frontend, key: LinkKey, ticket: bytes) -> Echo:
    """The connection of a worker."""
    data = await connect(*there.address, key.data, timeout_s=5)
    data.send(Attach(ticket, 4711, "none"))
    echo = Echo()
    data.hand_over(echo)
    return echo


async def until(met: Callable[[], Any], within_s: float = 5.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


OPENED: list[Any] = []
"""Transports of the test's own side. uvloop's loop does not close while one of them is open."""


async def connect(host: str, port: int, context: ssl.SSLContext, *, timeout_s: float) -> Channel:
    """As the product's own, for a channel that ends with the test."""
    channel = await dial(host, port, context, timeout_s=timeout_s)
    OPENED.append(channel._transport)
    return channel


def run(work: Callable[[], Awaitable[None]]) -> None:
    """One test, under the event loop that the server has."""

    async def all_of_it() -> None:
        try:
            await work()
        finally:
            while OPENED:
                OPENED.pop().abort()
            await asyncio.sleep(0.05)  # for the other sides to hear of it

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_of_it())


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    """One platform for all tests."""
    return make_platform(tmp_path_factory.mktemp("platform") / "tee")


def test_join_and_answer(platform: SimulatedPlatform) -> None:
    """Two attested sides join; frames go out to the worker and answers come back, several in flight."""

    async def work() -> None:
        own, wanted = credentials(attester(platform)), demands(platform)
        async with frontend(own, wanted) as there:
            channel, key = await join(there, own, wanted)
            assign = await assigned(channel)
            assert (assign.model, len(assign.ticket)) == (KEY, 32)
            await bring(there, key, assign.ticket)
            await until(lambda: there.model.attached)
            (worker,) = there.model.attached
            assert (worker.pid, worker.host) == (4711, "host")
            heard: list[tuple[int, bytes]] = []
            worker.on_answers = lambda frame: heard.extend(
                (item.number, bytes(frame[1])) for item in frame[0].items
            )
            for number in range(20):
                body = os.urandom(100_000)
                worker.send(Predict([b"\x90"], [RequestItem(number, "", 0, b"", len(body))]), [body])
            await until(lambda: len(heard) == 20)
            assert [number for number, _ in heard] == list(range(20))

    run(work)


def test_refusals_say_why_on_both_sides(platform: SimulatedPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is not acceptable learns why in one line, and the frontend logs the same."""
    logged: list[str] = []
    monkeypatch.setattr(port_module.log, "warning", lambda event, **more: logged.append(more["reason"]))
    own, wanted = credentials(attester(platform)), demands(platform)
    strangers = [
        (credentials(None), "no evidence"),
        (credentials(attester(platform, measurement=bytes(48))), "mr_td"),
        (credentials(attester(platform, aged=True)), "OutOfDate"),
    ]

    async def work() -> None:
        async with frontend(own, wanted) as there:
            for other, words in strangers:
                with pytest.raises(RefusedByPeer, match=words):
                    await join(there, other, wanted)
            assert there.port.hosts == []

    run(work)
    assert [words in line for (_, words), line in zip(strangers, logged, strict=True)] == [True] * 3


def test_host_refuses_the_frontend(platform: SimulatedPlatform) -> None:
    """A frontend with other code, or in another mode, gets no worker."""

    async def work() -> None:
        wrong = credentials(attester(platform, measurement=bytes(48)))
        async with frontend(wrong, demands(platform)) as there:
            with pytest.raises(CloisterError, match="mr_td"):
                await join(there, credentials(attester(platform)), demands(platform))
            with pytest.raises(CloisterError, match="mode"):
                await join(there)
            await asyncio.sleep(0.1)
            assert there.model.attached == []

    run(work)


def test_relay_is_refused(platform: SimulatedPlatform) -> None:
    """Somebody between, who passes every message on unchanged, is found out by both keys."""

    async def work() -> None:
        own, wanted = credentials(attester(platform)), demands(platform)
        async with frontend(own, wanted) as there:
            between = make_link_key()

            class Relay(Channel):
                def connection_made(self, transport: Any) -> None:
                    super().connection_made(transport)
                    asyncio.get_running_loop().create_task(self._pass_on())

                async def _pass_on(self) -> None:
                    onward = await connect(*there.address, between.join, timeout_s=5)
                    ours, theirs = Pipe(), Pipe()
                    ours.other, theirs.other = theirs, ours
                    onward.hand_over(theirs)
                    self.hand_over(ours)
                    ours.flush()
                    theirs.flush()

            loop = asyncio.get_running_loop()
            server = await loop.create_server(Relay, "127.0.0.3", 0, ssl=between.server)
            number = server.sockets[0].getsockname()[1]
            key = make_link_key()
            channel = await connect("127.0.0.3", number, key.join, timeout_s=5)
            with pytest.raises(RefusedByPeer, match="another connection"):
                await prove_each_other(channel, "worker", own_spki=key.spki, own=own, demands=wanted)
            server.close()

    run(work)


class Pipe(asyncio.Protocol):
    """Passes on what comes."""

    def __init__(self) -> None:
        self.other: Pipe | None = None
        self.transport: Any = None
        self._early = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        if self.other.transport is None:
            self._early += data
        else:
            self.other.transport.write(data)

    def flush(self) -> None:
        """Pass on what came before the other side was there."""
        assert self.other is not None
        if self._early:
            self.other.transport.write(bytes(self._early))
            self._early.clear()


def test_ticket_of_another_host() -> None:
    """A ticket is good for the host that it was given to, once."""

    async def work() -> None:
        async with open_frontend() as there:
            channel, key = await join(there)
            other, other_key = await join(there)
            assign = await assigned(channel)
            thief = await bring(there, other_key, assign.ticket)
            guess = await bring(there, key, bytes(32))
            await until(lambda: thief.transport.is_closing() and guess.transport.is_closing())
            assert there.model.attached == []
            await bring(there, key, assign.ticket)
            await until(lambda: there.model.attached)
            again = await bring(there, key, assign.ticket)
            await until(lambda: again.transport.is_closing())
            assert len(there.model.attached) == 1
            other.close()

    run(work)


def test_silent_host_is_lost() -> None:
    """A host that is not heard for the configured time is lost, and so are its workers, with the reason."""

    async def work() -> None:
        async with open_frontend() as there:
            channel, key = await join(there)
            await bring(there, key, (await assigned(channel)).ticket)
            await until(lambda: there.model.attached)
            began = time.monotonic()
            while time.monotonic() - began < 1.5 * TIMEOUT_S:
                channel.send(Ping())
                await asyncio.sleep(TIMEOUT_S / 4)
            assert there.model.attached
            silent = time.monotonic()
            await until(lambda: there.model.ends)
            assert time.monotonic() - silent < 2 * TIMEOUT_S
            assert there.model.ends == ["its host host was lost"]
            assert there.port.hosts == []

    run(work)


def test_worker_that_ends_is_started_again() -> None:
    """A worker's end comes with its reason, and the host is asked for another, later if it fails at once."""

    async def work() -> None:
        async with open_frontend() as there:
            channel, key = await join(there)
            first = await assigned(channel)
            await bring(there, key, first.ticket)
            await until(lambda: there.model.attached)
            channel.send(Ended(first.slot, "it ended with signal 9 (SIGKILL)"))
            began = time.monotonic()
            beat = asyncio.create_task(beating(channel))
            second = await assigned(channel)
            assert there.model.ends == ["it ended with signal 9 (SIGKILL)"]
            assert second.slot != first.slot
            assert time.monotonic() - began > 0.5
            beat.cancel()

    run(work)


async def beating(channel: Channel) -> None:
    """A host's heartbeat."""
    while True:
        channel.send(Ping())
        await asyncio.sleep(TIMEOUT_S / 4)


def test_leaving() -> None:
    """A host that leaves is told when its workers have gone, and gets nothing new."""

    async def work() -> None:
        async with open_frontend() as there:
            channel, key = await join(there)
            beat = asyncio.create_task(beating(channel))
            echo = await bring(there, key, (await assigned(channel)).ticket)
            await until(lambda: there.model.attached)
            channel.send(Leave())
            await asyncio.sleep(0.1)
            echo.transport.close()
            kind: Any = FromFrontend
            while not isinstance(await channel.receive(kind, limit=1 << 20, timeout_s=5), Leave):
                pass
            await until(lambda: there.port.hosts == [])
            beat.cancel()

    run(work)


def test_garbage_and_slow_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, silence and half handshakes are closed in time, and hosts join meanwhile."""
    monkeypatch.setattr(port_module, "HANDSHAKE_S", 1.0)
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    wrong = make_link_key().join
    wrong.set_alpn_protocols(["h2"])

    async def work() -> None:
        async with open_frontend() as there:
            streams = []
            for noise in (b"", b"\x16\x03", b"GET / HTTP/1.1\r\n\r\n", os.urandom(10_000)):
                reader, writer = await asyncio.open_connection(*there.address)
                writer.write(noise)
                streams.append((reader, writer))
            for context in (anonymous, wrong):
                with contextlib.suppress(OSError):
                    streams.append(await asyncio.open_connection(*there.address, ssl=context))
            channel, _ = await join(there)
            assert (await assigned(channel)).model == KEY
            began = time.monotonic()
            for reader, writer in streams:
                with contextlib.suppress(OSError):
                    while await reader.read(1 << 16):
                        pass
                writer.close()
            assert time.monotonic() - began < 3
            await until(lambda: not there.port._strangers, 8)

    run(work)


def test_strangers_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address cannot hold more than its share of unproven connections, and others still come in."""
    monkeypatch.setattr(port_module, "MAX_STRANGERS_EACH", 4)

    async def work() -> None:
        async with open_frontend() as there:
            loop = asyncio.get_running_loop()
            socks = []
            for _ in range(10):
                sock = socket.socket()
                sock.setblocking(False)
                sock.bind(("127.0.0.9", 0))
                await loop.sock_connect(sock, there.address)
                socks.append(sock)
            await asyncio.sleep(0.2)
            assert there.port._strangers["127.0.0.9"] == 4
            channel, _ = await join(there)
            await assigned(channel)
            for sock in socks:
                sock.close()

    run(work)


def test_unreachable(tmp_path: Path) -> None:
    """Nobody there, or somebody who speaks something else, is a TransportError in one line."""

    async def work() -> None:
        key = make_link_key()
        with pytest.raises(TransportError, match="cannot reach the frontend"):
            await connect("127.0.0.2", 1, key.join, timeout_s=2)

        def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail\r\n")
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.2", 0)
        number = server.sockets[0].getsockname()[1]
        with pytest.raises(TransportError):
            await connect("127.0.0.2", number, key.join, timeout_s=2)
        server.close()

    run(work)

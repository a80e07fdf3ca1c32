"""The core's end of a frontend's socket: it takes nothing that it should not be told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.serve.frames import FrameDecoder, Headers, encode_frame
from cloister.serve.frontends import desk as desk_module
from cloister.serve.frontends.desk import Desk
from cloister.serve.frontends.frames import (
    Alive,
    AskHead,
    AskItem,
    Asks,
    Gone,
    Ready,
    Replies,
    Start,
    ToFrontend,
)
from cloister.serve.http.front import Front
from cloister.serve.http.gateway import Opened
from cloister.serve.http.messages import Request
from cloister.serve.http.paths import GATEWAY
from cloister.serve.http.ways import Way
from cloister.serve.jobs import Answer, Job
from tests.serve.http.front_end import TEXT, FakeApi, run

HEADERS: Headers = [(b"host", b"a"), (b"content-length", b"3")]
RAW = msgspec.msgpack.encode(AskHead("POST", "/predictions/echo", b"", HEADERS))


class Rig:
    """A desk, and the other end of its socket."""

    def __init__(self, api: FakeApi, desk: Desk, sock: socket.socket) -> None:
        self.api, self.desk, self.sock = api, desk, sock
        self.words: list[Any] = []
        self.broken: list[str] = []
        self._decoder: FrameDecoder[ToFrontend] = FrameDecoder(ToFrontend)  # type: ignore[arg-type]

    async def say(self, message: Any, *bodies: bytes) -> None:
        for part in encode_frame(message, bodies):
            await asyncio.get_running_loop().sock_sendall(self.sock, part)

    async def hear(self) -> tuple[Replies, bytes]:
        """The next frame."""
        while True:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 1 << 16), 5)
            for message, payload in self._decoder.feed(data):
                assert isinstance(message, Replies)
                return message, bytes(payload)


@contextlib.asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    api: Any = FakeApi()
    ours, theirs = socket.socketpair()
    made: list[Rig] = []
    desk = Desk(
        [Front(api, Way.OPEN, body_timeout_s=1.0)],
        on_word=lambda word: made[0].words.append(word),
        on_broken=lambda reason: made[0].broken.append(reason),
        on_lost=lambda: made[0].broken.append("lost"),
    )
    made.append(Rig(api, desk, theirs))
    for sock in (ours, theirs):
        sock.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: desk, sock=ours)
    try:
        yield made[0]
    finally:
        desk.close()
        theirs.close()
        await asyncio.sleep(0.01)


def asks(*items: AskItem, heads: list[bytes] | None = None, port: int = 0) -> Asks:
    return Asks(port, [RAW] if heads is None else heads, list(items))


def test_one_frame_each_way() -> None:
    """Requests of one frame reach their model together, and their answers come back in one frame."""

    async def test() -> None:
        async with rig() as end:
            await end.say(asks(AskItem(1, "a", 0, 3), AskItem(2, "b", 0, 2)), b"one", b"22")
            replies, payload = await end.hear()
            assert [(item.number, item.status, item.body_bytes) for item in replies.items] == [
                (1, 200, 3),
                (2, 200, 2),
            ]
            assert (payload, len(replies.heads)) == (b"one22", 1)
            assert [job.request_id for job in end.api.model.jobs] == ["a", "b"]
            assert end.api.model.jobs[0].headers is end.api.model.jobs[1].headers
            assert end.desk.asked == {}

    run(test())


def test_a_fault_of_ours_is_one_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model's queue should never raise is that request's 500; others over the socket go on."""

    async def test() -> None:
        async with rig() as end:
            submit = end.api.model.submit

            def failing(job: Job) -> None:
                if job.body == b"bad":
                    raise RecursionError("secret")
                submit(job)

            monkeypatch.setattr(end.api.model, "submit", failing)
            await end.say(asks(AskItem(1, "a", 0, 3), AskItem(2, "b", 0, 3)), b"bad", b"two")
            found: dict[int, int] = {}
            while len(found) < 2:
                replies, payload = await end.hear()
                found.update((item.number, item.status) for item in replies.items)
                assert b"secret" not in payload
            assert (found, end.desk.asked, end.broken) == ({1: 500, 2: 200}, {}, [])

    run(test())


def test_parts_without_end_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that streams on and on under one seal fills no memory: its caller is told, sealed."""
    monkeypatch.setattr(desk_module, "MAX_ANSWER_BYTES", 1000)

    class Sealer:
        def seal(self, response: bytes) -> bytes:
            return b"sealed " + response

    class Gateway:
        def open(self, capsule: bytes) -> Opened:
            return Opened(Request("POST", "/predictions/echo", b"", HEADERS, capsule), Sealer())

    async def test() -> None:
        async with rig() as end:
            end.api.gateway, end.api.model.held = Gateway(), True
            head = [(b"content-type", b"message/ohttp-req"), *HEADERS]
            raw = msgspec.msgpack.encode(AskHead("POST", GATEWAY, b"", head))
            await end.say(asks(AskItem(1, "a", 0, 3), heads=[raw]), b"abc")
            await asyncio.sleep(0.02)
            (job,) = end.api.model.jobs
            for _ in range(20):
                if not job.cancelled:
                    job.deliver(job, Answer(200, TEXT, bytes(100), more=True))
            replies, payload = await end.hear()
            assert [(item.status, item.more) for item in replies.items] == [(200, False)]
            assert payload.startswith(b"sealed ")
            assert b"too large" in payload
            assert job.cancelled
            assert end.desk.asked == {}

    run(test())


def test_words() -> None:
    """What a frontend says of itself is passed on."""

    async def test() -> None:
        async with rig() as end:
            await end.say(Ready())
            await end.say(Alive())
            await asyncio.sleep(0.02)
            assert end.words == [Ready(), Alive()]

    run(test())


def test_callers_who_leave() -> None:
    """What nobody waits for any more is cancelled, its answer dropped, and an unknown number ignored."""

    async def test() -> None:
        async with rig() as end:
            end.api.model.held = True
            await end.say(asks(AskItem(1, "a", 0, 3), AskItem(2, "b", 0, 3)), b"one", b"two")
            await end.say(Gone([1, 99]))
            await asyncio.sleep(0.02)
            one, two = end.api.model.jobs
            assert (one.cancelled, two.cancelled) == (True, False)
            one.deliver(one, Answer(200, TEXT, b"late"))
            end.api.model.release(two)
            replies, payload = await end.hear()
            assert ([item.number for item in replies.items], payload) == ([2], b"two")

    run(test())


def test_end_cancels_what_waits() -> None:
    """When a frontend is gone, its requests are cancelled, those of the general kind too."""

    async def test() -> None:
        async with rig() as end:
            end.api.model.held = True
            end.api.cold_delay_s = 30.0
            cold = msgspec.msgpack.encode(AskHead("GET", "/elsewhere", b"", HEADERS))
            await end.say(asks(AskItem(1, "a", 0, 3), AskItem(2, "b", 1, 0), heads=[RAW, cold]), b"one")
            await asyncio.sleep(0.02)
            tasks = [item.task for item in end.desk.asked.values() if item.task is not None]
            end.sock.close()
            await asyncio.sleep(0.02)
            assert end.api.model.jobs[0].cancelled
            assert [task.cancelled() for task in tasks] == [True]
            assert end.desk.asked == {}
            assert end.broken == ["lost"]

    run(test())


BAD = {
    "unknown port": (asks(AskItem(1, "a", 0, 3), port=1), b"abc"),
    "unknown head": (asks(AskItem(1, "a", 1, 3)), b"abc"),
    "too few bytes": (asks(AskItem(1, "a", 0, 4)), b"abc"),
    "too many bytes": (asks(AskItem(1, "a", 0, 2)), b"abc"),
    "number in use": (asks(AskItem(1, "a", 0, 1), AskItem(1, "a", 0, 2)), b"abc"),
    "no head": (asks(AskItem(1, "a", 0, 3), heads=[b"\xc1"]), b"abc"),
    "the core's word": (Start([], False, 1, 1.0, 1.0, "info"), b""),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit(case: str) -> None:
    """A frame that does not fit together is reported in words, and nothing is raised."""

    async def test() -> None:
        async with rig() as end:
            end.api.model.held = True
            message, body = BAD[case]
            await end.say(message, body)
            await asyncio.sleep(0.02)
            assert len(end.broken) == 1
            assert end.broken[0].startswith("it broke the protocol: ")

    run(test())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(noise: bytes, framed: bool) -> None:
    """Whatever bytes come, the desk raises nothing and asks no model for more than it was told."""

    async def test() -> None:
        async with rig() as end:
            if framed:
                head = len(noise) // 2
                noise_ = head.to_bytes(4) + (len(noise) - head).to_bytes(8) + noise
                end.desk.data_received(noise_)
            else:
                end.desk.data_received(noise)
            jobs: list[Job] = end.api.model.jobs
            assert all(job.body == b"" or job.body in noise for job in jobs)

    run(test())

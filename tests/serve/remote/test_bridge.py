"""Tests of ``cloister.serve.remote.bridge`` and ``backend``."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvloop

from cloister.serve.frames import AnswerItem, Answers, Frame, Predict, RequestItem, encode_frame
from cloister.serve.remote.backend import RemoteWorker
from cloister.serve.remote.bridge import HIGH_WATER_BYTES, End, join


async def end(on_lost: Any = lambda: None) -> tuple[End, socket.socket]:
    """One side of a bridge, and the socket that is its other end."""
    near, far = socket.socketpair()
    side = End(on_lost)
    near.setblocking(False)
    far.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: side, sock=near)
    return side, far


def run(work: Any) -> None:
    """One test, under the event loop that the server has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


def test_both_ways_from_the_first_byte() -> None:
    """What came before the sides were joined is not lost, and both directions pass."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        (one, left), (other, right) = await end(), await end()
        await loop.sock_sendall(left, b"early ")
        await asyncio.sleep(0.05)
        join(one, other)
        await loop.sock_sendall(left, b"late")
        heard = b""
        while len(heard) < 10:
            heard += await loop.sock_recv(right, 100)
        assert heard == b"early late"
        await loop.sock_sendall(right, b"back")
        assert await loop.sock_recv(left, 100) == b"back"
        for sock in (left, right):
            sock.close()

    run(work)


def test_a_slow_side_holds_back_the_other() -> None:
    """While one side does not read, little more than the high-water mark is taken from the other."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        (one, left), (other, right) = await end(), await end()
        join(one, other)
        total = 30 << 20
        sending = asyncio.create_task(loop.sock_sendall(left, bytes(total)))
        await asyncio.sleep(0.3)
        assert not sending.done()
        assert other._transport is not None
        assert other._transport.get_write_buffer_size() < 2 * HIGH_WATER_BYTES
        heard = 0
        while heard < total:
            heard += len(await loop.sock_recv(right, 1 << 20))
        await sending
        for sock in (left, right):
            sock.close()

    run(work)


def test_remote_worker_breaks_the_protocol() -> None:
    """A worker that sends anything but answers is ended, with a reason, once."""

    async def work() -> None:
        ends: list[str] = []
        frames: list[Frame[Answers]] = []
        near, far = socket.socketpair()
        worker = RemoteWorker(host="host", pid=1, state="none")
        worker.on_end = lambda ended: ends.append(ended.reason)
        worker.on_answers = frames.append
        gone: list[bool] = []
        worker.when_gone(lambda: gone.append(True))
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=near)
        good = b"".join(encode_frame(Answers([b"\x90"], [AnswerItem(1, 200, 0, 2)]), [b"ok"]))
        far.sendall(good)
        await asyncio.sleep(0.05)
        assert bytes(frames[0][1]) == b"ok"
        request = Predict([b"\x90"], [RequestItem(1, "", 0, b"", 0)])
        far.sendall(b"".join(encode_frame(request)) + good)
        await asyncio.sleep(0.05)
        assert ends == ["it broke the protocol: frame head is not a known message"]
        assert len(frames) == 1
        worker.kill("again")
        worker.send(request)
        await worker.stop()
        assert (len(ends), gone) == (1, [True])
        far.close()

    run(work)


def test_stop_waits_for_the_worker() -> None:
    """A worker that leaves when it is told to is not cut off."""

    async def work() -> None:
        near, far = socket.socketpair()
        worker = RemoteWorker(host="host", pid=1, state="none")
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=near)
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.05)
        assert b"stop" in far.recv(100)
        assert not stopping.done()
        far.close()
        await stopping
        assert worker.reason == "the server stopped it"

    run(work)

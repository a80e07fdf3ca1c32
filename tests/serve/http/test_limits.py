"""What the frontend refuses on real sockets: smuggling, too much, too slow, and callers who do not read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

import pytest

from cloister.serve.http import front as front_module
from cloister.serve.http import linger, outgoing, protocol
from cloister.serve.jobs import Answer
from cloister.serve.seat import memory_bytes
from tests.serve.http.front_end import LIMIT, TEXT, FrontEnd, front_end, post, run

START = b"POST /predictions/echo HTTP/1.1\r\nhost: a\r\n"
SMUGGLED = {
    "two lengths": START + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "two different lengths": START + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "list of lengths": START + b"content-length: 3, 3\r\n\r\nabc",
    "signed length": START + b"content-length: +3\r\n\r\nabc",
    "hexadecimal length": START + b"content-length: 0x3\r\n\r\nabc",
    "empty length": START + b"content-length:\r\n\r\nabc",
    "huge length": START + b"content-length: 99999999999999999999\r\n\r\nabc",
    "length and chunks": START + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": START + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    "not chunked last": START + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "unknown coding": START + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "vertical tab": START + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"POST /predictions/echo HTTP/1.1\nhost: a\ncontent-length: 3\n\nabc",
    "one bare line feed": START + b"x: y\ncontent-length: 3\r\n\r\nabc",
    "bare carriage return": START + b"x: y\rcontent-length: 3\r\n\r\nabc",
    "folded line": START + b"x: y\r\n z\r\ncontent-length: 3\r\n\r\nabc",
    "folded first line": b"POST /predictions/echo HTTP/1.1\r\n x: y\r\ncontent-length: 0\r\n\r\n",
    "NUL in a value": START + b"x: y\x00z\r\ncontent-length: 3\r\n\r\nabc",
    "NUL in a name": START + b"x\x00y: z\r\ncontent-length: 3\r\n\r\nabc",
    "space before the colon": START + b"content-length : 3\r\n\r\nabc",
    "no name": START + b": y\r\ncontent-length: 3\r\n\r\nabc",
    "two hosts": START + b"host: b\r\ncontent-length: 3\r\n\r\nabc",
    "space in the path": b"POST /predictions/echo x HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not plain text at all\r\n\r\n",
    "bad chunk": START + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "chunk ended by a line feed": START + b"transfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "chunk too long": START + b"transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    "tunnel": b"CONNECT other:443 HTTP/1.1\r\nhost: other\r\n\r\n",
    "version 2": b"POST /predictions/echo HTTP/2.0\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
    "coded chunks": START + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
}
STATUSES = {"tunnel": (400, 405), "version 2": (505,), "coded chunks": (501,), "unknown coding": (400, 501)}


@pytest.mark.parametrize("case", SMUGGLED)
def test_smuggling(case: str) -> None:
    """What two servers could read differently is refused; what came before is answered, nothing after."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            await wire.send(post(b"first") + post(b"second"))
            assert [(await wire.answer())[2] for _ in range(2)] == [b"first", b"second"]
            await wire.send(post(b"third") + SMUGGLED[case] + post(b"smuggled"))
            assert (await wire.answer())[2] == b"third"
            status, headers, _ = await wire.answer()
            assert status in STATUSES.get(case, (400,))
            assert headers["connection"] == "close"
            assert await wire.rest() == b""
            assert [job.body for job in end.model.jobs] == [b"first", b"second", b"third"]
            assert end.api.handled == []

    run(test())


def test_known_head_is_no_prefix() -> None:
    """Bytes that begin like a known head, but are another one, are read anew."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            await wire.send(b"\r\n" + post(b"abc"))
            assert (await wire.answer())[2] == b"abc"
            await wire.send(post(b"abc"))
            assert (await wire.answer())[2] == b"abc"
            await wire.send(START + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc")
            assert (await wire.answer())[0] == 400

    run(test())


def test_leading_lines_are_not_learnt() -> None:
    """Empty lines before a request, which HTTP allows, are never taken for a head."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            for _ in range(3):
                await wire.send(b"\r\n\r\n" + post(b"abc"))
                assert (await wire.answer())[2] == b"abc"
            assert len(end.front.heads) == 0

    run(test())


@pytest.mark.parametrize(
    "head",
    [
        START + b"x: " + b"y" * 70_000 + b"\r\n\r\n",
        START + b"".join(b"x%d: y\r\n" % number for number in range(300)) + b"\r\n",
        START + b"".join(b"x%d: %b\r\n" % (number, b"y" * 1000) for number in range(80)) + b"\r\n",
        b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /" + b"y" * 300_000,
        START + b"x" * 300_000,
    ],
)
def test_huge_head(head: bytes) -> None:
    """A head over the limit is refused, whether or not it ever ends."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            await wire.send(head)
            status, headers, _ = await wire.answer()
            assert (status, headers["connection"]) == (431, "close")

    run(test())


def test_body_over_limit() -> None:
    """A declared length over the limit is refused before the body comes, a chunked body when it passes it."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            await wire.send(post(b"x" * LIMIT))
            assert (await wire.answer())[0] == 200
            await wire.send(START + b"content-length: %d\r\n\r\n" % (LIMIT + 1))
            status, headers, _ = await wire.answer()
            assert (status, headers["connection"]) == (413, "close")
            wire = await end.connect()
            await wire.send(START + b"transfer-encoding: chunked\r\n\r\n")
            await wire.send(b"%x\r\n" % (LIMIT + 1) + b"x" * (LIMIT + 1) + b"\r\n0\r\n\r\n")
            assert (await wire.answer())[0] == 413
            assert len(end.model.jobs) == 1
            assert end.api.traced == [413, 413]

    run(test())


def test_refusal_reaches_a_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who sends on gets to see the refusal, and then the end; it is not read without limit."""
    monkeypatch.setattr(linger, "LINGER_BYTES", 16 << 20)

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            await wire.send(b"not HTTP at all\r\n\r\n")
            for _ in range(20):
                wire.writer.write(b"x" * 100_000)
            status, _, _ = await wire.answer()
            assert status == 400
            assert await wire.rest() == b""
            wire = await end.connect()
            sent = 0
            try:
                await wire.send(b"not HTTP at all\r\n\r\n")
                while sent < 3 * linger.LINGER_BYTES:
                    await wire.send(b"x" * 1_000_000)
                    sent += 1_000_000
            except ConnectionError:
                pass
            assert sent < 3 * linger.LINGER_BYTES

    run(test())


SENDS_FIRST = {
    "declared": START + b"content-length: %d\r\n\r\n",
    "cold": b"POST /else HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n",
    "chunked": START + b"transfer-encoding: chunked\r\n\r\n%x\r\n",
    "broken": b"not HTTP at all\r\n\r\n",
}


@pytest.mark.parametrize("case", SENDS_FIRST)
def test_who_sends_all_before_reading(case: str) -> None:
    """A caller who sends 48 MiB over the limit before it reads a byte gets its refusal, never a reset."""
    size = LIMIT + (48 << 20)
    head = SENDS_FIRST[case]
    head = head % size if b"%" in head else head

    def send_then_read(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
            wire.sendall(head)
            for _ in range(size >> 20):
                wire.sendall(bytes(1 << 20))
            time.sleep(0.2)
            return wire.recv(65_536)

    async def test() -> None:
        async with front_end() as end:
            before = memory_bytes(os.getpid())
            got = await asyncio.to_thread(send_then_read, end.port)
            assert got.startswith(b"HTTP/1.1 4" + (b"00" if case == "broken" else b"13")), got[:200]
            assert memory_bytes(os.getpid()) - before < 24 << 20
            assert end.model.jobs == []

    run(test())


@pytest.mark.parametrize("case", SENDS_FIRST)
def test_who_sends_without_end(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused caller who goes on sending is dropped after so many bytes, or after so long."""
    head = SENDS_FIRST[case]
    head = head % (1 << 40) if b"%" in head else head

    def send_on(port: int) -> int:
        sent = 0
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", port), timeout=30) as wire,
        ):
            wire.sendall(head)
            while sent < 64 << 20:
                wire.sendall(bytes(1 << 20))
                sent += 1 << 20
                time.sleep(0.001)
        return sent

    async def test(limit: int) -> None:
        async with front_end() as end:
            assert await asyncio.to_thread(send_on, end.port) < limit

    monkeypatch.setattr(front_module, "TICK_S", 0.005)
    monkeypatch.setattr(linger, "LINGER_BYTES", 8 << 20)
    run(test(32 << 20))
    monkeypatch.setattr(linger, "LINGER_BYTES", 1 << 40)
    monkeypatch.setattr(linger, "LINGER_S", 0.01)
    run(test(64 << 20))


def test_linger_ends() -> None:
    """Each read puts the end off, up to the whole time and the number of bytes."""
    waits = linger.Linger(100.0)
    assert waits.due == 100.0 + linger.LINGER_IDLE_S
    assert waits.drop(1, 101.0)
    assert waits.due == 101.0 + linger.LINGER_IDLE_S
    assert waits.drop(1, 100.0 + linger.LINGER_S - 0.5)
    assert waits.due == 100.0 + linger.LINGER_S
    assert not waits.drop(1, 100.0 + linger.LINGER_S)
    assert not linger.Linger(0.0).drop(linger.LINGER_BYTES + 1, 0.0)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "TICK_S", 0.005)
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    monkeypatch.setattr(protocol, "IDLE_S", 0.4)
    monkeypatch.setattr(linger, "LINGER_IDLE_S", 0.1)


def test_slow_head_and_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head or a body that does not come whole in time is 408, on either path and with known heads."""
    hurry(monkeypatch)

    async def test() -> None:
        async with front_end(body_timeout_s=0.3) as end:
            wire = await end.connect()
            await wire.send(post(b"abc"))
            await wire.answer()
            unfinished = [
                START + b"content-le",
                b"GET /ping HTTP/1.1\r\nhost: a\r\n",
                post(b"abc")[:-1],
                post(b"new", headers="x: y\r\n")[:-1],
                post(b"cold", "/else")[:-1],
                b"POST /else HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n",
                START + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
            ]
            for raw in unfinished:
                wire = await end.connect()
                await wire.send(raw)
                status, headers, _ = await wire.answer()
                assert (status, headers["connection"]) == (408, "close"), raw
                assert await wire.rest() == b""

    run(test())


def test_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request is closed after a while, new or kept alive; one that waits is not."""
    hurry(monkeypatch)

    async def test() -> None:
        async with front_end(body_timeout_s=5) as end:
            new, kept, waits = await end.connect(), await end.connect(), await end.connect()
            await kept.send(post(b"abc"))
            await kept.answer()
            end.model.held = True
            await waits.send(post(b"abc"))
            loop = asyncio.get_running_loop()
            start = loop.time()
            assert await new.rest() == b""
            assert await kept.rest() == b""
            assert 0.2 < loop.time() - start < 2
            await asyncio.sleep(0.5)
            end.model.release(end.model.jobs[-1])
            assert (await waits.answer())[2] == b"abc"

    run(test())


async def fill(end: FrontEnd) -> tuple[int, asyncio.StreamWriter]:
    """Ask without reading answers, until the server takes no more; how many were asked."""
    _, writer = await asyncio.open_connection("127.0.0.1", end.port, limit=1000)
    asked = 0
    for _ in range(200):
        if writer.transport.is_closing():
            break  # dropped already
        writer.write(post(b"x") * 10)
        asked += 10
        await asyncio.sleep(0.002)
    return asked, writer


def test_caller_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are not taken stop the reading of requests; a caller who never takes them is dropped."""
    hurry(monkeypatch)

    async def test() -> None:
        async with front_end(body_timeout_s=0.5) as end:
            end.model.answer = lambda _: [Answer(200, TEXT, bytes(1 << 20))]
            asked, writer = await fill(end)
            assert len(end.model.jobs) < asked / 4
            while end.front.connections:
                await asyncio.sleep(0.05)
            writer.close()

    run(test())


def test_many_outstanding_answers_pause_reading() -> None:
    """A caller who pipelines without end is read no further than a limit, and then served on."""

    async def test() -> None:
        async with front_end() as end:
            end.model.held = True
            wire = await end.connect()
            for _ in range(30):
                await wire.send(post(b"x") * 10)
                await asyncio.sleep(0.002)
            assert protocol.MAX_PIPELINED <= len(end.model.jobs) < 200
            done = 0
            while done < 300:
                await asyncio.sleep(0)
                for job in end.model.jobs[done:]:
                    end.model.release(job)
                    assert (await wire.answer())[2] == b"x"
                    done += 1

    run(test())


def test_slow_reader_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A streamed answer that its caller does not take is given up when too much of it waits."""

    async def test() -> None:
        async with front_end() as end:
            parts = [Answer(200, TEXT, bytes(1 << 20), more=True)] * 64
            end.model.answer = lambda _: parts
            wire = await end.connect()
            await wire.send(post(b"x"))
            while not end.model.jobs or not end.model.jobs[0].cancelled:
                await asyncio.sleep(0.01)

    run(test())


def test_parts_that_nobody_may_get_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of endless parts that has to wait for another is given up, and memory stays bounded."""
    monkeypatch.setattr(outgoing, "MAX_ANSWER_BYTES", 1 << 20)

    async def test() -> None:
        async with front_end() as end:
            end.model.held = True
            wire = await end.connect()
            await wire.send(post(b"first") + post(b"second"))
            while len(end.model.jobs) < 2:
                await asyncio.sleep(0.01)
            first, second = end.model.jobs
            sent = 0
            while not second.cancelled:
                second.deliver(second, Answer(200, TEXT, bytes(100_000), None, True))
                sent += 100_000
                assert sent < 2 << 20
            first.deliver(first, Answer(200, TEXT, b"done"))
            assert (await wire.answer())[2] == b"done"
            assert (await wire.answer())[0] == 503
            end.model.held = False
            await wire.send(post(b"third"))
            assert (await wire.answer())[2] == b"third"

    run(test())

"""The hot protocol on real sockets: what is hot, order, keep-alive, cancellation, drain."""

from __future__ import annotations

import asyncio
import inspect
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cloister.serve.frames import Fault
from cloister.serve.http.messages import error_response
from cloister.serve.http.protocol import HotProtocol
from cloister.serve.jobs import Answer
from tests.serve.http.front_end import TEXT, front_end, post, run


def test_hot_and_cold() -> None:
    """A prediction goes to its model without the application; other requests go to the application."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            for number in range(3):
                await wire.send(post(b"x%d" % number, "/predictions/echo?a=1"))
                status, headers, body = await wire.answer()
                assert (status, body) == (200, b"a=1x%d" % number)
                assert headers["cache-control"] == "no-cache; no-store, must-revalidate, private"
                assert headers["pragma"] == "no-cache"
                assert headers["expires"] == "Thu, 01 Jan 1970 00:00:00 UTC"
                assert len(headers["x-request-id"]) == 36
                assert headers["date"].endswith("GMT")
            assert end.api.handled == []
            assert len(end.front.heads) == 1
            await wire.send(b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n")
            status, headers, body = await wire.answer()
            assert (status, body) == (200, b"cold ")
            assert "x-request-id" in headers
            assert len(end.model.jobs) == 3

    run(test())


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (post(b"abc", version="1.0"), b"cold abc"),
        (post(b"abc", headers="expect: 100-continue\r\n"), b"cold abc"),
        (b"POST /predictions/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
         b"3\r\nabc\r\n0\r\nx-trailer: t\r\n\r\n", b"cold abc"),
        (b"POST /predictions/echo HTTP/1.1\r\nhost: a\r\n\r\n", b"cold "),
        (post(b"abc", method="DELETE"), b"cold abc"),
        (post(b"abc", method="PUT"), b"abc"),
        (post(b"abc", "/PREDICTIONS/echo"), b"cold abc"),
        (post(b"abc", "/%70redictions/echo"), b"abc"),
        (post(b"abc", "http://a/predictions/echo"), b"abc"),
        (post(b"abc", headers="connection: upgrade\r\nupgrade: h2c\r\n"), b"abc"),
        (post(b"abc", headers="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n"),
         b"abc"),
    ],
)  # fmt: skip
def test_which_path(raw: bytes, body: bytes) -> None:
    """Only a plain HTTP/1.1 request with a length is hot; the others are answered by the application."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            await wire.send(raw)
            head = b""
            if b"100-continue" in raw:
                assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            status, _, found = await wire.answer()
            assert (status, found, head) == (200, body, b"")
            if b"HTTP/1.0" not in raw:
                await wire.send(post(b"next"))
                assert (await wire.answer())[2] == b"next"

    run(test())


CHUNKED = b"POST /predictions/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
HOT = post(b"hot-body")
MIXTURE = [
    HOT,
    post(b""),
    post(b"other", headers="x-y: z\r\n"),
    b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n",
    post(b"cold-body", "/else"),
    CHUNKED + b"5\r\nchunk\r\n0\r\n\r\n",
]
EXPECTED = [b"hot-body", b"", b"other", b"", b"cold-body", b"chunk"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    picks=st.lists(st.integers(0, len(MIXTURE) - 1), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 1500), max_size=8),
    late=st.booleans(),
)
def test_pipelined_in_pieces(picks: list[int], cuts: list[int], late: bool) -> None:
    """However a pipelined mixture of requests is cut, every answer comes, in the order of the requests."""

    async def test() -> None:
        async with front_end() as end:
            end.model.delay_s = 0.01 if late else 0.0
            raw = b"".join(MIXTURE[pick] for pick in picks)
            places = [0, *sorted({cut % len(raw) for cut in cuts}), len(raw)]
            for _ in range(2):  # the second time with heads that are known
                wire = await end.connect()
                await wire.send(*(raw[a:b] for a, b in itertools.pairwise(places) if a < b))
                for pick in picks:  # behind a cold one even the hot ones are cold, which the fake shows
                    body = (await wire.answer())[2]
                    assert body.removeprefix(b"cold ") == EXPECTED[pick]

    run(test())


def test_answers_keep_order() -> None:
    """An answer that is ready early waits for those of earlier requests."""

    async def test() -> None:
        async with front_end() as end:
            end.model.held = True
            wire = await end.connect()
            await wire.send(post(b"1") + post(b"2") + post(b"3"))
            while len(end.model.jobs) < 3:
                await asyncio.sleep(0.001)
            for job in reversed(end.model.jobs):
                end.model.release(job)
            assert [(await wire.answer())[2] for _ in range(3)] == [b"1", b"2", b"3"]

    run(test())


def test_connection_close() -> None:
    """After ``Connection: close`` the answer says so too, nothing more is read, and the connection ends."""

    async def test() -> None:
        async with front_end() as end:
            for _ in range(2):
                wire = await end.connect()
                await wire.send(post(b"1", headers="connection: close\r\n") + post(b"2"))
                status, headers, body = await wire.answer()
                assert (status, headers["connection"], body) == (200, "close", b"1")
                assert await wire.rest() == b""
            assert len(end.model.jobs) == 2

    run(test())


def test_caller_gone() -> None:
    """When the caller leaves, all its requests are cancelled, on either path."""

    async def test() -> None:
        async with front_end() as end:
            end.model.held = True
            wire = await end.connect()
            await wire.send(post(b"1") + post(b"2"))
            while len(end.model.jobs) < 2:
                await asyncio.sleep(0.001)
            await wire.close()
            while not all(job.cancelled for job in end.model.jobs):
                await asyncio.sleep(0.001)
            end.api.cold_delay_s = 30
            wire = await end.connect()
            await wire.send(post(b"1", "/else"))
            while not end.api.handled:
                await asyncio.sleep(0.001)
            await wire.close()
            while end.listeners._servers[0].server_state.tasks:
                await asyncio.sleep(0.001)

    run(test())


def test_drain() -> None:
    """A server that stops answers what is in flight, says that it closes, and closes idle connections."""

    async def test() -> None:
        async with front_end() as end:
            end.model.held = True
            idle, busy, half = await end.connect(), await end.connect(), await end.connect()
            await idle.send(b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n")
            await idle.answer()
            await busy.send(post(b"1") + post(b"2"))
            await half.send(post(b"half")[:-2])
            while len(end.model.jobs) < 2:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            stopping = asyncio.create_task(end.listeners.stop())
            assert await idle.rest() == b""
            await half.send(b"lf")
            while len(end.model.jobs) < 3:
                await asyncio.sleep(0.001)
            for job in end.model.jobs:
                end.model.release(job)
            _, headers, body = await busy.answer()
            assert (body, "connection" in headers) == (b"1", False)
            _, headers, body = await busy.answer()
            assert (body, headers["connection"]) == (b"2", "close")
            assert (await half.answer())[2] == b"half"
            assert await busy.rest() == b""
            await stopping

    run(test())


def test_overload_and_faults() -> None:
    """A full queue is 503 with Retry-After, a fault is in TorchServe's form; the connection stays."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            end.model.full = True
            await wire.send(post(b"1"))
            status, headers, _ = await wire.answer()
            assert (status, headers["retry-after"]) == (503, "1")
            end.model.full = False
            end.model.answer = lambda _: [Answer(400, [], b"", Fault("Prediction failed", "ValueError"))]
            await wire.send(post(b"2"))
            status, _, body = await wire.answer()
            assert (status, b"BadRequestException" in body) == (400, True)
            end.model.answer = lambda _: [Answer(200, [(b"x", b"a\r\nb: c")], b"")]
            for _ in range(2):
                await wire.send(post(b"3"))
                assert (await wire.answer())[0] == 503
            end.model.answer = lambda _: [Answer(204, TEXT, b"left out")]
            await wire.send(post(b"4") + post(b"5"))
            for _ in range(2):
                status, headers, body = await wire.answer()
                assert (status, body, "content-length" in headers) == (204, b"", False)

    run(test())


def test_streamed_answer() -> None:
    """Parts of an answer go out as chunks; one that breaks off ends without the last chunk."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            parts = [
                Answer(200, TEXT, b"a", more=True),
                Answer(200, [], b"bc", more=True),
                Answer(200, [], b""),
            ]
            end.model.answer = lambda _: parts
            await wire.send(post(b"") + post(b""))
            for _ in range(2):
                status, headers, body = await wire.answer()
                assert (status, body, headers["transfer-encoding"]) == (200, b"abc", "chunked")
            parts[2] = Answer(503, [], b"", Fault("Prediction failed"))
            await wire.send(post(b""))
            assert (await wire.rest()).endswith(b"\r\n\r\n1\r\na\r\n2\r\nbc\r\n")

    run(test())


def test_priority_and_headers() -> None:
    """The job has the urgency of RFC 9218 and the caller's headers; heads that are equal share them."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            for _ in range(3):
                await wire.send(post(b"1", headers="Priority: i, u=1\r\n"))
                await wire.answer()
            assert [job.priority for job in end.model.jobs] == [1, 1, 1]
            assert end.model.jobs[1].headers is end.model.jobs[2].headers
            assert (b"priority", b"i, u=1") in end.model.jobs[0].headers

    run(test())


def test_admission_is_asked_again() -> None:
    """A head that was let in is refused when the decision changes, at the latest after the kept time."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            await wire.send(post(b"1"))
            await wire.answer()
            end.api.refused = error_response(401, "InvalidKeyException", "no")
            end.api.generation += 1
            await wire.send(post(b"2"))
            assert (await wire.answer())[0] == 401
            end.api.refused = None
            end.deciding.now += 2
            await wire.send(post(b"3"))
            assert (await wire.answer())[0] == 200
            end.api.refused = error_response(401, "InvalidKeyException", "no")
            end.deciding.now += 2
            await wire.send(post(b"3"))
            assert (await wire.answer())[0] == 401

    run(test())


def test_what_is_overridden_is_there() -> None:
    """The methods of uvicorn's protocol that the subclass takes part in exist under these names."""
    assert issubclass(HotProtocol, HttpToolsProtocol)
    for name in (
        "_start_asgi_task",
        "on_response_complete",
        "on_message_begin",
        "on_headers_complete",
        "shutdown",
    ):
        assert getattr(HttpToolsProtocol, name) is not getattr(HotProtocol, name)
    for name in ("response_complete", "response_started", "disconnected", "message_event", "keep_alive"):
        assert name in inspect.getsource(RequestResponseCycle)

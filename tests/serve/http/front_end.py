"""A real listening socket with the hot protocol, in front of models and routes that a test controls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvloop

from cloister.errors import Overloaded
from cloister.serve.frames import Headers
from cloister.serve.frontends.desk import Desk
from cloister.serve.frontends.frames import PortSpec, Start
from cloister.serve.frontends.link import Link
from cloister.serve.frontends.main import open_relay
from cloister.serve.http import paths
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.cors import Cors
from cloister.serve.http.front import Front
from cloister.serve.http.held import HeldBodies
from cloister.serve.http.messages import Request, Response, error_response
from cloister.serve.http.ways import Way
from cloister.serve.jobs import Answer, Job
from cloister.serve.listen import Listener, Listeners, bind
from cloister.serve.stats import ModelStats
from cloister.settings import ServeSettings

LIMIT = 100_000
TEXT = [(b"content-type", b"text/plain")]


class FakeModel:
    """Takes jobs like a supervisor; answers each with its body, at once, late or when told to."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.held = False
        self.delay_s = 0.0
        self.full = False
        self.stats = ModelStats("echo", "1.0")
        self.answer: Callable[[Job], list[Answer]] = lambda job: [Answer(200, TEXT, job.query + job.body)]

    def submit(self, job: Job) -> None:
        if self.full:
            raise Overloaded("no room")
        self.jobs.append(job)
        if not self.held:
            loop = asyncio.get_running_loop()
            if self.delay_s:
                # Later requests are answered earlier, to try the order.
                loop.call_later(max(0.0, self.delay_s - 0.001 * len(self.jobs)), self.release, job)
            else:
                loop.call_soon(self.release, job)

    def release(self, job: Job) -> None:
        """Deliver the answer to one job."""
        for part in self.answer(job):
            if not job.cancelled:
                job.deliver(job, part)


class FakeApi:
    """The part of ``Api`` that transports use: one hot model, everything else echoed by the general path."""

    def __init__(self) -> None:
        self.model = FakeModel()
        self.generation = 1
        self.counts = False
        self.gateway: Any = None
        self.held = HeldBodies()
        self.cors = Cors(ServeSettings())
        self.refused: Response | None = None
        self.handled: list[Request] = []
        self.traced: list[int] = []
        self.cold_delay_s = 0.0
        self.content: Callable[[Request], Any] = lambda request: b"cold " + request.content

    def refuse_early(self, way: Way, path: str) -> Response | None:
        return None

    def trace_refusal(self, headers: Headers, status: int, started: float) -> None:
        self.traced.append(status)

    def body_limit(self, path: str) -> int:
        return LIMIT + (1 << 17) if path == paths.GATEWAY else LIMIT

    def admit(self, way: Way, supervisor: Any, headers: Headers, certificate: bytes = b"") -> Response | None:
        return self.refused

    def target(self, way: Way, method: str, path: str) -> Any:
        return self.model if path.startswith(paths.PREDICTIONS) else None

    def hot(self, way: Way, method: str, path: str, headers: Headers) -> tuple[Any, Headers]:
        return self.target(way, method, path), self.model_headers(headers)

    def model_headers(self, headers: Headers) -> Headers:
        return headers

    async def handle(self, request: Request, way: Way) -> Response:
        self.handled.append(request)
        if self.refused is not None:
            return self.refused
        if request.path == paths.GATEWAY:
            answered: Response = await self.gateway.answer(request)
            return answered
        if self.cold_delay_s:
            await asyncio.sleep(self.cold_delay_s)
        if request.path == "/missing":
            return error_response(404, "ResourceNotFoundException", "no")
        return Response(200, list(TEXT), self.content(request))

    async def handle_sealed(self, request: Request) -> Response:
        return await self.handle(request, Way.SEALED)


class Wire:
    """A raw connection to the listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if pause_s or len(pieces) > 1:
                await asyncio.sleep(pause_s)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next whole response."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        status = int(lines[0].split(" ")[1])
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
            return status, headers, body
        return status, headers, await self.reader.readexactly(int(headers.get("content-length", "0")))

    async def rest(self) -> bytes:
        """All until the server closes."""
        with contextlib.suppress(ConnectionResetError):
            return await self.reader.read()
        return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class FrontEnd:
    """The listener and its fakes."""

    def __init__(self, api: FakeApi, listeners: Listeners, port: int, deciding: Front) -> None:
        self.api, self.listeners, self.port = api, listeners, port
        self.model = api.model
        self.deciding = deciding
        """What decides about heads; of the core where requests are handed over."""
        self._wires: list[Wire] = []

    @property
    def front(self) -> Any:
        """What reads the connections."""
        return self.listeners._fronts[0]

    def use_cors(self, cors: Cors) -> None:
        """Say this to pages."""
        self.api.cors = cors
        for item in self.listeners._listeners:
            item.app.api.cors = cors  # type: ignore[misc]

    async def connect(self) -> Wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        wire = Wire(reader, writer)
        self._wires.append(wire)
        return wire

    async def close(self) -> None:
        for wire in self._wires:
            await wire.close()
        await self.listeners.stop()
        assert self.front.held.bytes == 0


HANDED = False
"""Whether ``front_end`` puts the hand-over of a frontend process between the listener and the fakes."""


@contextlib.asynccontextmanager
async def front_end(
    *, way: Way = Way.OPEN, body_timeout_s: float = 5.0, access_log: Any = None
) -> AsyncIterator[FrontEnd]:
    """A listener on a free port."""
    api: Any = FakeApi()
    sock: socket.socket = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    async with contextlib.AsyncExitStack() as stack:
        if HANDED:
            deciding = Front(api, way, body_timeout_s=body_timeout_s)
            deciding.access_log = access_log
            deciding.start()
            stack.callback(deciding.stop)
            link = await _hand_over(deciding, stack)
            listeners = open_relay(link, _start(sock.detach(), way, body_timeout_s))
        else:
            app = AsgiApp(api, way, body_timeout_s=body_timeout_s)
            listeners = Listeners([Listener(sock, app)], drain_s=5.0, access_log=access_log)
            deciding = listeners._fronts[0]
        await listeners.start()
        end = FrontEnd(api, listeners, port, deciding)
        try:
            yield end
        finally:
            await end.close()


async def _hand_over(front: Front, stack: contextlib.AsyncExitStack) -> Link:
    """Both ends of a frontend process's socket, in one process; that nothing is left over is seen to."""
    loop = asyncio.get_running_loop()
    faults: list[str] = []
    desk = Desk([front], on_word=lambda _: None, on_broken=faults.append, on_lost=lambda: None)
    link = Link(lambda: None)
    ours, theirs = socket.socketpair()
    for sock, protocol in ((ours, desk), (theirs, link)):
        sock.setblocking(False)
        await loop.create_unix_connection(lambda protocol=protocol: protocol, sock=sock)

    async def end() -> None:
        await asyncio.sleep(0.05)
        left = (link.waiting, len(desk.asked), list(faults))
        desk.close()
        await asyncio.sleep(0.01)
        assert left == (0, 0, [])

    stack.push_async_callback(end)
    return link


def _start(fd: int, way: Way, body_timeout_s: float) -> Start:
    return Start(
        ports=[PortSpec(fd, way.value)],
        protected=False,
        max_request_bytes=LIMIT,
        body_timeout_s=body_timeout_s,
        drain_s=5.0,
        log_level="info",
    )


def run(test: Any) -> None:
    """Run a coroutine in the server's own kind of event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test, 60))


def post(
    body: bytes,
    path: str = "/predictions/echo",
    *,
    method: str = "POST",
    headers: str = "",
    version: str = "1.1",
) -> bytes:
    """A request as bytes."""
    head = f"{method} {path} HTTP/{version}\r\nhost: a\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body

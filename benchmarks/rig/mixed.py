"""Callers of all kinds at once, good and bad, whose every answer is compared with the right one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from rig.soak_handler import PARTS, scaled

BIG_BYTES = 64 << 20
TIMEOUT_S = 60.0
LINES = 20
"""So many failures are described."""
JSON_TYPE, BYTES_TYPE = "application/json", "application/octet-stream"
CALLERS = {
    "numbers": 8,
    "chunked": 1,
    "images": 2,
    "streamed": 2,
    "slow": 4,
    "malformed": 2,
    "too_large": 1,
    "cancelled": 2,
}
"""How many callers of each kind there are at the same time; each waits for its answer before it goes on."""
GOOD = ("numbers", "chunked", "images", "streamed", "slow")


class Cut(Exception):
    """The connection ended inside an answer, or before one."""


class Connection:
    """One kept connection, which is opened anew after its end."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> asyncio.StreamWriter:
        """What to write to."""
        if self.writer is None:
            self._reader, self.writer = await asyncio.open_connection(*self._address)
        return self.writer

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None

    async def ask(self, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
        """Status and body of the answer to one POST."""
        writer = await self.open()
        writer.write(head(path, len(body), content_type) + body)
        await writer.drain()
        return await self.read()

    async def read(self) -> tuple[int, bytes]:
        """The next answer."""
        reader = self._reader
        assert reader is not None
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            fields = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
            if b"content-length" in fields:
                body = await reader.readexactly(int(fields[b"content-length"]))
            else:
                body = await self._read_chunks(reader)
        except asyncio.IncompleteReadError as error:
            self.close()
            raise Cut(f"after {len(error.partial)} bytes") from None
        if fields.get(b"connection") == b"close":
            self.close()
        return int(lines[0].split(b" ")[1]), body

    async def _read_chunks(self, reader: asyncio.StreamReader) -> bytes:
        chunks = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunks.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        return b"".join(chunks)


def head(path: str, size: int, content_type: str) -> bytes:
    """Head of a POST."""
    return (
        f"POST /predictions/{path} HTTP/1.1\r\nhost: soak\r\ncontent-type: {content_type}\r\n"
        f"content-length: {size}\r\n\r\n"
    ).encode()


class MixedLoad:
    """Callers that go on until they are told to stop."""

    def __init__(self, host: str, port: int, *, seed: int) -> None:
        self._address = host, port
        self._random = random.Random(seed)
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.right: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        """Streamed answers that broke off in the middle, as they must when their worker dies."""
        self.lines: list[str] = []
        self.longest_s: Counter[str] = Counter()
        self._pictures = [_picture(colour) for colour in ((255, 0, 0), (0, 128, 255), (10, 20, 30))]

    def start(self) -> None:
        """Start all callers."""
        self._stop.clear()
        for kind, count in CALLERS.items():
            step: Callable[[Connection], Awaitable[None]] = getattr(self, f"_{kind}")
            self._tasks += [asyncio.create_task(self._go_on(kind, step)) for _ in range(count)]

    async def pause(self) -> None:
        """Let every caller finish its request and close its connection."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    async def _go_on(self, kind: str, step: Callable[[Connection], Awaitable[None]]) -> None:
        connection = Connection(*self._address)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await step(connection)
            except Cut as error:
                # What has begun cannot be computed again; all the others can.
                self.cut[kind] += 1
                if kind != "streamed":
                    self._fail(kind, f"cut {error}")
            except (OSError, TimeoutError, ValueError, AssertionError, asyncio.IncompleteReadError) as error:
                self._fail(kind, f"{type(error).__name__}: {error}")
                connection.close()
            else:
                self.right[kind] += 1
            self.longest_s[kind] = max(self.longest_s[kind], time.monotonic() - started)  # type: ignore[assignment]
            await asyncio.sleep(0.005)
        connection.close()

    def _fail(self, kind: str, line: str) -> None:
        self.wrong[kind] += 1
        if len(self.lines) < LINES:
            self.lines.append(f"{time.strftime('%H:%M:%S')} {kind}: {line}"[:300])

    # The kinds of callers.

    async def _numbers(self, connection: Connection) -> None:
        row = [self._random.randrange(1000) / 8 for _ in range(4)]
        found = await connection.ask("numbers", json.dumps(row).encode(), JSON_TYPE)
        _expect(found, 200, scaled(row))

    async def _chunked(self, connection: Connection) -> None:
        row = [self._random.randrange(1000) / 8 for _ in range(4)]
        body = json.dumps(row).encode()
        writer = await connection.open()
        start = b"POST /predictions/numbers HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n"
        pieces = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:5], body[5:]))
        writer.write(start + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")
        _expect(await connection.read(), 200, scaled(row))

    async def _images(self, connection: Connection) -> None:
        body, answer = self._random.choice(self._pictures)
        _expect(await connection.ask("images", body, BYTES_TYPE), 200, answer)

    async def _streamed(self, connection: Connection) -> None:
        number = self._random.randrange(1 << 30)
        status, body = await connection.ask("parts", json.dumps(number).encode(), JSON_TYPE)
        wanted = "".join(f"{part}:{number};" for part in range(PARTS)) + "end"
        assert (status, body) == (200, wanted.encode()), f"{status} {body[:100]!r}"

    async def _slow(self, connection: Connection) -> None:
        body = self._random.randbytes(20_000)
        writer = await connection.open()
        writer.write(head("digest", len(body), BYTES_TYPE))
        for start in range(0, len(body), 1000):
            writer.write(body[start : start + 1000])
            await writer.drain()
            await asyncio.sleep(0.05)
        status, answer = await connection.read()
        wanted = hashlib.sha256(body).hexdigest().encode()
        assert (status, answer) == (200, wanted), f"{status} {answer[:100]!r}"

    async def _malformed(self, connection: Connection) -> None:
        turn = self._random.randrange(6)
        if turn == 5:
            writer = await connection.open()
            writer.write(b"POST /predictions/numbers HTTP/1.1\r\nhost : a\r\nx\r\n\r\n")
            status, body = await connection.read()
        elif turn == 4:
            status, body = await connection.ask("images", self._random.randbytes(500), BYTES_TYPE)
        else:
            bad = (b"[1, 2, 3]", b"[1, 2", b'["x", 1, 2, 3]', b"[[1, 2, 3, 4]]")[turn]
            status, body = await connection.ask("numbers", bad, JSON_TYPE)
        assert status == 400, f"turn {turn}: {status} {body[:100]!r}"

    async def _too_large(self, connection: Connection) -> None:
        writer = await connection.open()
        writer.write(head("numbers", BIG_BYTES, JSON_TYPE))
        with contextlib.suppress(OSError):
            for _ in range(BIG_BYTES >> 16):
                writer.write(bytes(1 << 16))
                await writer.drain()
                await asyncio.sleep(
                    0
                )  # the answer comes while it still sends: read it before the connection ends
                if connection._reader is not None and connection._reader._buffer:  # type: ignore[attr-defined]
                    break  # it has answered already
        status, _ = await connection.read()
        connection.close()
        assert status == 413, f"{status}"
        await asyncio.sleep(0.5)

    async def _cancelled(self, connection: Connection) -> None:
        body = self._random.randbytes(5000)
        writer = await connection.open()
        sent = head("digest", len(body), BYTES_TYPE) + body
        writer.write(sent[: self._random.choice((100, 3000, len(sent), len(sent), len(sent)))])
        await asyncio.sleep(self._random.random() * 0.03)
        connection.close()


def _expect(found: tuple[int, bytes], status: int, answer: Any) -> None:
    assert found[0] == status, f"{found[0]} {found[1][:100]!r}"
    assert json.loads(found[1]) == answer, f"{found[1][:100]!r} is not {answer!r}"


def _picture(colour: tuple[int, int, int]) -> tuple[bytes, dict[str, Any]]:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (320, 240), colour).save(out, "PNG")
    return out.getvalue(), {"size": [320, 240], "first": list(colour)}

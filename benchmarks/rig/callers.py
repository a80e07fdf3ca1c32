"""Callers who wait for their answer before they ask again, on kept connections, in one thread and one epoll.

For models so slow that a load generator which stops in the middle of a batch counts wrongly: every request
that was sent is waited for, and the time ends with the last answer. Costs a tenth of a millisecond for each
request. As a program it reads a ``Load`` as JSON from stdin and prints what it found.

Bodies come from a file: ``<decimal length>\n<bytes>`` one after the other; with ``once`` each is sent once,
else the first again and again.
"""

from __future__ import annotations

import base64
import json
import mmap
import select
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CHUNK = 1 << 18
WAIT_S = 120.0
"""An answer that takes longer is a failure."""


@dataclass(frozen=True)
class Load:
    """What to ask, and how."""

    host: str
    port: int
    path: str
    headers: Mapping[str, str]
    bodies: str
    """Path of the file with the bodies."""
    callers: int
    seconds: float
    tls: bool = False
    once: bool = False
    keep: int = 0
    """How many answers are kept, from the first body on."""


@dataclass
class Found:
    """What one run of callers found."""

    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    requests: int
    failed: int
    """Answers whose status is not 200, and connections that ended."""
    took_s: float
    processor_s: float
    """Processor time of the callers themselves."""
    statuses: dict[str, int] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    """The kept answers in the order of their bodies, base64; empty where none came."""

    def figures(self) -> dict[str, float]:
        """Those that rounds are compared by."""
        return {"per_s": self.per_s, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "failed": self.failed}


def write_bodies(path: Path, bodies: Iterator[bytes] | list[bytes]) -> None:
    """A file of bodies."""
    with path.open("wb") as file:
        for body in bodies:
            file.write(b"%d\n%b" % (len(body), body))


def read_bodies(raw: bytes | mmap.mmap) -> list[tuple[int, int]]:
    """Where each body of a file begins and ends."""
    places, at = [], 0
    while at < len(raw):
        end = raw.find(b"\n", at)
        start = end + 1
        at = start + int(raw[at:end])
        places.append((start, at))
    return places


def run_callers(load: Load) -> Found:
    """Ask from a process of its own, so that this one's work is not on the callers' time."""
    found = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(asdict(load)),
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise SystemExit(f"the load generator failed: {found.stderr[-2000:]}")
    return Found(**json.loads(found.stdout))


class _Caller:
    """One connection, with the request that it sends and the answer that it waits for."""

    def __init__(self, load: Load, tls: ssl.SSLContext | None) -> None:
        plain = socket.create_connection((load.host, load.port), timeout=WAIT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = tls.wrap_socket(plain, server_hostname=load.host) if tls else plain
        self.socket.setblocking(False)
        self.number = -1
        self.sent_at = 0.0
        self._out = memoryview(b"")
        self._in = bytearray()
        self._end = 0

    def ask(self, number: int, request: bytes) -> None:
        """Begin to send."""
        self.number, self.sent_at = number, time.perf_counter()
        self._out, self._in, self._end = memoryview(request), bytearray(), 0

    def write(self) -> bool:
        """Send what the socket takes; true when all of it is sent."""
        while self._out:
            try:
                self._out = self._out[self.socket.send(self._out) :]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
        return True

    def read(self) -> tuple[int, bytes] | None:
        """Status and body when they are complete.

        Raises:
            ConnectionError: the server ended the connection.
        """
        while True:
            try:
                data = self.socket.recv(CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None
            if not data:
                raise ConnectionError("the server ended the connection")
            self._in += data
            if not self._end:
                self._end = _answer_bytes(self._in)
            if self._end and len(self._in) >= self._end:
                body = self._in.index(b"\r\n\r\n") + 4
                return int(self._in[9:12]), bytes(self._in[body : self._end])


def _answer_bytes(received: bytearray) -> int:
    """Length of the whole answer; 0 as long as its head is not complete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = bytes(received[:end]).lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        raise ConnectionError("an answer without content-length")
    return end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])


def _ask(load: Load) -> Found:
    tls = None
    if load.tls:
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # the key is in the evidence, not signed
    with Path(load.bodies).open("rb") as file:
        raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    places = read_bodies(raw)
    lines = [f"POST {load.path} HTTP/1.1", f"host: {load.host}:{load.port}"]
    lines += [f"{name}: {value}" for name, value in load.headers.items()]
    head = "\r\n".join([*lines, "content-length: "]).encode()

    def request(number: int) -> bytes:
        start, end = places[number if load.once else 0]
        return b"%b%d\r\n\r\n%b" % (head, end - start, raw[start:end])

    waiting = select.epoll()
    callers: dict[int, _Caller] = {}
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    answers = [""] * load.keep
    used_s, began = time.process_time(), time.perf_counter()
    last, number = began, 0

    def go_on(caller: _Caller, *, new: bool = False) -> None:
        nonlocal number
        descriptor = caller.socket.fileno()
        if time.perf_counter() - began >= load.seconds or (load.once and number >= len(places)):
            if not new:
                waiting.unregister(descriptor)
            callers.pop(descriptor, None)
            caller.socket.close()
            return
        caller.ask(number, request(number))
        number += 1
        events = select.EPOLLIN if caller.write() else select.EPOLLIN | select.EPOLLOUT
        callers[descriptor] = caller
        (waiting.register if new else waiting.modify)(descriptor, events)

    for caller in [_Caller(load, tls) for _ in range(load.callers)]:
        go_on(caller, new=True)
    while callers:
        ready = waiting.poll(WAIT_S)
        if not ready:
            statuses["no answer"] += len(callers)
            break
        for descriptor, event in ready:
            caller = callers[descriptor]
            try:
                if event & select.EPOLLOUT and caller.write():
                    waiting.modify(descriptor, select.EPOLLIN)
                found = caller.read() if event & ~select.EPOLLOUT else None
            except OSError:
                statuses["cut"] += 1
                waiting.unregister(descriptor)
                del callers[descriptor]
                caller.socket.close()
                go_on(_Caller(load, tls), new=True)
                continue
            if found is not None:
                last = time.perf_counter()
                latencies.append(last - caller.sent_at)
                statuses[str(found[0])] += 1
                if caller.number < load.keep:
                    answers[caller.number] = base64.b64encode(found[1]).decode()
                go_on(caller)
    latencies.sort()
    good = statuses["200"]
    return Found(
        per_s=good / (last - began) if good else 0.0,
        p50_ms=_quantile(latencies, 0.5) * 1e3,
        p99_ms=_quantile(latencies, 0.99) * 1e3,
        max_ms=latencies[-1] * 1e3 if latencies else 0.0,
        requests=sum(statuses.values()),
        failed=sum(statuses.values()) - good,
        took_s=last - began,
        processor_s=time.process_time() - used_s,
        statuses=dict(statuses),
        answers=answers,
    )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def main() -> None:
    """Read a ``Load`` from stdin, ask, print."""
    settings: dict[str, Any] = json.load(sys.stdin)
    json.dump(asdict(_ask(Load(**settings))), sys.stdout)


if __name__ == "__main__":
    main()

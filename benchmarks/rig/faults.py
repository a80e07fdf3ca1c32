"""What must not hurt other callers: bad requests in their batch, a killed worker, a huge body, slow ones."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rig.servers import Running
from rig.wrk import Load, run_wrk

HERE = Path(__file__).resolve().parent
BAD_BODIES = ("[1, 2, 3]", "[1, 2", '{"a": 1}', '["x", 1, 2, 3]', "null", "[[1, 2, 3, 4]]")


def poison(server: Running, *, rounds: int = 100) -> dict[str, Any]:
    """16 callers at the same time, 12 of them with malformed inputs, round after round."""
    found: Counter[str] = Counter()
    reasons = 0
    gate = threading.Barrier(16)
    lock = threading.Lock()

    def call(place: int) -> None:
        nonlocal reasons
        good = place % 4 == 0
        connection = http.client.HTTPConnection(*server.address, timeout=30)
        for turn in range(rounds):
            body = server.body if good else BAD_BODIES[(place + turn) % len(BAD_BODIES)]
            gate.wait()
            try:
                connection.request("POST", server.path, body, {"content-type": "application/json"})
                response = connection.getresponse()
                status, text = response.status, response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                status, text = 0, b""
            with lock:
                found[f"{'good' if good else 'bad'} {status}"] += 1
                reasons += not good and status == 400 and len(text) > 40
        connection.close()

    threads = [threading.Thread(target=call, args=(place,)) for place in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = sum(count for key, count in found.items() if key.startswith("good") and key != "good 200")
    return {"good_failed": failed, "bad_with_reason": reasons, "answers": dict(sorted(found.items()))}


def kill_worker(server: Running, body: Path, *, seconds: float = 8.0) -> dict[str, Any]:
    """kill -9 of the worker in the middle of a load of 64 connections."""
    killed: list[int] = []

    def kill() -> None:
        time.sleep(seconds / 3)
        for pid in server.children():
            with contextlib.suppress(OSError):
                if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return

    killer = threading.Thread(target=kill)
    killer.start()
    load = run_wrk(server.url, body, connections=64, seconds=seconds)
    killer.join()
    after = run_wrk(server.url, body, connections=64, seconds=2)
    return {
        "killed": len(killed),
        "requests": load.requests,
        "failed": load.failed,
        "longest_ms": load.max_ms,
        "after_per_s": after.requests_per_s,
    }


def probe(server: Running, seconds: float) -> subprocess.Popen[str]:
    """A caller in a process of its own, who asks every 2 ms and notes how long it took."""
    host, port = server.address
    command = [
        sys.executable,
        str(HERE / "probe.py"),
        host,
        str(port),
        server.path,
        server.body,
        str(seconds),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read_probe(process: subprocess.Popen[str]) -> dict[str, float]:
    """What a probe found."""
    output, _ = process.communicate(timeout=120)
    result: dict[str, float] = json.loads(output)
    return result


def huge_body(server: Running, *, megabytes: int = 200) -> dict[str, Any]:
    """A body far over the limit, while another caller goes on."""
    quiet = read_probe(probe(server, 4))
    before = server.memory_bytes()
    other = probe(server, 4)
    time.sleep(1)
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, server.memory_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    sent, status = _send_huge(server, megabytes << 20)
    took = time.monotonic() - started
    loud = read_probe(other)
    done.set()
    watcher.join()
    return {
        "status": status,
        "sent_mb": sent >> 20,
        "took_s": took,
        "memory_mb": (peak - before) / 2**20,
        "quiet_max_ms": quiet["max_ms"],
        "loud_max_ms": loud["max_ms"],
        "others_failed": loud["failed"],
    }


def _send_huge(server: Running, size: int) -> tuple[int, int]:
    head = f"POST {server.path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    piece = b"[" + b"1" * ((1 << 20) - 1)
    sent = 0
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(f"{head}content-length: {size}\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            while sent < size:
                connection.sendall(piece)
                sent += len(piece)
        answer = b""
        with contextlib.suppress(OSError):
            answer = connection.recv(65_536)
    return sent, int(answer.split(b" ")[1]) if answer else 0


def slow_callers(
    server: Running, body: Path, *, idle: int = 10_000, slow: int = 50, rounds: int = 3
) -> dict[str, Any]:
    """Many connections that do nothing, some that send a byte at a time, and others who are in a hurry."""
    alone: list[Load] = []
    crowded: list[Load] = []
    opened, memory = idle + slow, 0
    for _ in range(rounds):
        alone.append(run_wrk(server.url, body, connections=16, seconds=3))
        before = server.memory_bytes()
        with _crowd(server, idle, slow) as count:
            crowded.append(run_wrk(server.url, body, connections=16, seconds=3))
            opened = min(opened, count)
            memory = max(memory, server.memory_bytes() - before)
    return {
        "opened": opened,
        "alone_p99_ms": statistics.median(load.p99_ms for load in alone),
        "crowded_p99_ms": statistics.median(load.p99_ms for load in crowded),
        "alone_per_s": statistics.median(load.requests_per_s for load in alone),
        "crowded_per_s": statistics.median(load.requests_per_s for load in crowded),
        "failed": sum(load.failed for load in crowded),
        "memory_mb": memory / 2**20,
    }


@contextlib.contextmanager
def _crowd(server: Running, idle: int, slow: int) -> Iterator[int]:
    """The crowd, in a process of its own; how many connections it has."""
    host, port = server.address
    command = [sys.executable, str(HERE / "crowd.py"), host, str(port), server.path, str(idle), str(slow)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        opened = int(process.stdout.readline())
        time.sleep(2)  # the last of them may still wait to be accepted
        yield opened
    finally:
        process.communicate("")
        time.sleep(1)

"""Asks every 2 ms for a while on one connection. Arguments: host, port, path, body, seconds."""

from __future__ import annotations

import json
import socket
import sys
import time


def main() -> None:
    """Print how long the answers took."""
    host, port, path, body, seconds = sys.argv[1:6]
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()
    times: list[float] = []
    failed = 0
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        until = time.monotonic() + float(seconds)
        while time.monotonic() < until:
            started = time.perf_counter()
            connection.sendall(request)
            failed += not connection.recv(65_536).startswith(b"HTTP/1.1 200")
            times.append(time.perf_counter() - started)
            time.sleep(0.002)
    times.sort()
    p99 = times[int(len(times) * 0.99)]
    json.dump({"max_ms": times[-1] * 1e3, "p99_ms": p99 * 1e3, "failed": failed}, sys.stdout)


if __name__ == "__main__":
    main()

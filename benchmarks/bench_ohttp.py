"""What sealing costs on one core: opening and answering at the gateway, the whole conversation at the caller.

Usage: python benchmarks/bench_ohttp.py [--json] [--seconds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

from cloister.crypto.hpke import Kem
from cloister.ohttp.bhttp import (
    Request,
    Response,
    parse_request,
    parse_response,
    render_request,
    render_response,
)
from cloister.ohttp.capsule import KeyConfig, open_request, seal_request
from cloister.ohttp.gateway import Gateway, GatewayKey
from cloister.ohttp.replay import ReplayGuard

SMALL_BYTES = 1024
LARGE_BYTES = 8 << 20
HEADERS = (
    (b"content-type", b"application/json"),
    (b"accept", b"*/*"),
    (b"date", b"Sun, 01 Mar 2026 12:00:00 GMT"),
    (b"user-agent", b"cloister/0.1"),
)


def time_us(act: Callable[[], object], seconds: float) -> float:
    """Median of batches, in microseconds per call."""
    act()
    start = time.perf_counter()
    act()
    batch = max(1, int(0.02 / max(time.perf_counter() - start, 1e-7)))
    results: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(results) < 5:
        start = time.perf_counter()
        for _ in range(batch):
            act()
        results.append((time.perf_counter() - start) / batch)
    return statistics.median(results) * 1e6


def measure(kem: Kem, content_bytes: int, seconds: float) -> dict[str, float]:
    """Each step of one conversation, in microseconds."""
    key = GatewayKey.generate(kem)
    config = KeyConfig.parse(key.config.render())
    content = os.urandom(content_bytes)
    request = Request(b"POST", b"https", b"localhost:8443", b"/predictions/m", HEADERS, content)
    response = Response(200, HEADERS, content)
    message, answer = render_request(request), render_response(response)
    capsule, opener = seal_request(config, message)
    _, sealer = open_request(key.private, capsule)
    sealed = sealer.seal(answer)

    def server() -> None:
        # A new gateway's guard each time: the same capsule would otherwise be a replay.
        opened, seal = Gateway((key,), guard=ReplayGuard()).open(capsule)
        parse_request(opened)
        seal.seal(render_response(response))

    def server_in() -> None:
        parse_request(open_request(key.private, capsule)[0])

    def server_out() -> None:
        sealer.seal(render_response(response))

    def client() -> None:
        seal_request(config, render_request(request))
        parse_response(opener.open(sealed))

    return {
        "open_request": time_us(lambda: open_request(key.private, capsule), seconds),
        "parse_request": time_us(lambda: parse_request(message), seconds),
        "seal_response": time_us(lambda: sealer.seal(answer), seconds),
        "server_in": time_us(server_in, seconds),
        "server_out": time_us(server_out, seconds),
        "server_total": time_us(server, seconds),
        "client_total": time_us(client, seconds),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    options = parser.parse_args()
    report: dict[str, object] = {"python": platform.python_version(), "machine": platform.machine(), "us": {}}
    times: dict[str, dict[str, float]] = {}
    for kem in Kem:
        times[f"{kem.name} {SMALL_BYTES} B"] = measure(kem, SMALL_BYTES, options.seconds)
    large = measure(Kem.X25519_HKDF_SHA256, LARGE_BYTES, options.seconds)
    times[f"{Kem.X25519_HKDF_SHA256.name} {LARGE_BYTES} B"] = large
    report["us"] = {name: {step: round(us, 1) for step, us in rows.items()} for name, rows in times.items()}
    report["large_gb_per_s"] = {
        step: round(LARGE_BYTES / large[step] / 1e3, 2) for step in ("server_in", "server_out")
    }
    if options.json:
        json.dump(report, sys.stdout, indent=1)
        print()
        return 0
    for name, rows in times.items():
        print(name)
        for step, us in rows.items():
            print(f"  {step:<14} {us:10.1f} us")
    print(f"8 MiB bodies, GB/s: {report['large_gb_per_s']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

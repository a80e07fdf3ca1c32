"""What sealing costs on one core: opening and answering at the gateway, the whole conversation at the caller.

Usage: python benchmarks/bench_ohttp.py [--json] [--seconds 1] [--first-answer]

"The server's own path" of a sealed prediction: opening, parsing, date, replay guard, API key, access policy,
and sealing the answer; chunked is the same for chunked OHTTP. ``--first-answer`` starts a
broker and a protected server on loopback, and times new clients: evidence, verification, the first answer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.client.sealing import StreamedAnswer
from cloister.client.session import Client
from cloister.crypto.hpke import Kem
from cloister.ohttp import chunked
from cloister.ohttp.bhttp import (
    Request,
    Response,
    parse_request,
    parse_response,
    render_request,
    render_response,
)
from cloister.ohttp.capsule import KeyConfig, open_request, seal_request
from cloister.ohttp.chunked_message import MessageSealer
from cloister.ohttp.gateway import Gateway, GatewayKey
from cloister.ohttp.replay import ReplayGuard, render_date
from cloister.policy.requests import WatchedPolicy
from cloister.serve.access.api_keys import make_api_key
from cloister.serve.access.control import AccessControl
from cloister.serve.http import messages
from cloister.serve.http.access import TokenAccess
from cloister.serve.http.actions import Asked
from cloister.serve.http.door import Door
from cloister.serve.http.gateway import GatewayEndpoint, Opened, seal_response
from cloister.serve.listen import keep_large_buffers
from cloister.serve.registry import Registry
from cloister.settings import ServeSettings

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


POLICY = """
permit (principal in Group::"staff", action == Action::"predict", resource == Model::"m")
when { context.way == "sealed" };
"""


class Endpoint:
    """The gateway's HTTP end, with an API key and a policy in front of the model."""

    def __init__(self, folder: Path) -> None:
        (folder / "requests.cedar").write_text(POLICY)
        key = make_api_key(folder / "keys", "one", now=datetime.now(UTC), groups=("staff",))
        self.door = Door(TokenAccess(None), Registry(ServeSettings()))
        self.door.use(AccessControl(WatchedPolicy(folder / "requests.cedar"), api_keys=folder / "keys"))
        self.headers = (*HEADERS[:2], (b"authorization", b"Bearer " + key.encode()))
        self.gateway = Gateway.generate()
        self.config = KeyConfig.parse(self.gateway.key_config)
        self.http = GatewayEndpoint(self.gateway, self._none, max_request_bytes=LARGE_BYTES)

    async def _none(self, _: messages.Request) -> messages.Response:
        raise AssertionError

    def message(self, content: bytes) -> Request:
        """A request of this moment."""
        date = (b"date", render_date(datetime.now(UTC)))
        return Request(b"POST", b"https", b"localhost", b"/predictions/m", (*self.headers, date), content)

    def admit(self, inner: messages.Request | messages.Response) -> None:
        """As the routes do."""
        assert isinstance(inner, messages.Request)
        self.door.require(None, "sealed", Asked("predict", "m"), inner.headers)

    def whole_us(self, content: bytes, runs: int) -> float:
        """One sealed request, median."""
        capsules = [seal_request(self.config, render_request(self.message(content)))[0] for _ in range(runs)]

        def one(capsule: bytes) -> None:
            opened = self.http.open(capsule)
            assert isinstance(opened, Opened)
            self.admit(opened.inner)
            seal_response(opened.sealer, 200, list(HEADERS), content)

        return _each_us(one, capsules)

    def chunked_us(self, content: bytes, runs: int, *, out: bool) -> float:
        """One chunked request as it comes in, or with ``out`` the sealing of its answer, median."""
        sealed = [self._seal_chunked(content if not out else b"x") for _ in range(runs)]
        answer = messages.Response(200, list(HEADERS), content)
        uploads = []

        def into(raw: bytes) -> None:
            with self.http.open_stream() as upload:
                for at in range(0, len(raw), 1 << 16):
                    upload.receive(raw[at : at + (1 << 16)])
                self.admit(upload.finish())
            uploads.append(upload)

        if not out:
            return _each_us(into, sealed)
        for raw in sealed:
            into(raw)
        return _each_us(lambda upload: upload.seal(answer), uploads)

    def _seal_chunked(self, content: bytes) -> bytes:
        sealer = chunked.RequestSealer(self.config)
        return MessageSealer(sealer, self.message(b"")).whole(content)

    def caller_us(self, content: bytes, runs: int, *, out: bool) -> float:
        """The caller's side of the same: sealing a chunked request with ``out``, or opening the answer."""
        if out:
            return _each_us(lambda _: self._seal_chunked(content), [None] * runs)
        answers = []
        for _ in range(runs):
            sealer = chunked.RequestSealer(self.config)
            with self.http.open_stream() as upload:
                upload.receive(MessageSealer(sealer, self.message(b"")).whole(b"x"))
                upload.finish()
            answer = upload.seal(messages.Response(200, list(HEADERS), content)).content
            assert isinstance(answer, bytes)
            answers.append((answer, StreamedAnswer(sealer.response_opener())))

        def read(item: tuple[bytes, StreamedAnswer]) -> None:
            raw, opener = item
            parts = [opener.receive(raw[at : at + (1 << 16)]) for at in range(0, len(raw), 1 << 16)]
            assert len(b"".join((*parts, opener.finish()))) == len(content)

        return _each_us(read, answers)


def measure_endpoint(folder: Path) -> dict[str, float]:
    """The server's own path, in microseconds; and in GB/s for large bodies."""
    endpoint = Endpoint(folder)
    small, large = os.urandom(SMALL_BYTES), os.urandom(LARGE_BYTES)

    def speed(us: float) -> float:
        return round(LARGE_BYTES / us / 1e3, 2)

    return {
        "small_us": round(endpoint.whole_us(small, 2000), 1),
        "small_chunked_us": round(endpoint.chunked_us(small, 2000, out=False), 1),
        "large_chunked_in_gb_per_s": speed(endpoint.chunked_us(large, 8, out=False)),
        "large_chunked_out_gb_per_s": speed(endpoint.chunked_us(large, 8, out=True)),
        "caller_large_chunked_out_gb_per_s": speed(endpoint.caller_us(large, 8, out=True)),
        "caller_large_chunked_in_gb_per_s": speed(endpoint.caller_us(large, 8, out=False)),
    }


def measure_first_answer(work: Path, runs: int = 20) -> dict[str, float]:
    """New clients of a real server with simulated evidence: the first verified answer, and later ones."""
    from rig.protected import start_protected_tiny

    first, later = [], []
    with start_protected_tiny(batching=False, work=work) as server:
        references = ReferenceValues.from_toml((work / "reference.toml").read_text())
        roots = [SimulatedPlatform.load(work / "platform").root]
        url, body = f"https://127.0.0.1:{server.https_port}", [0.1, 0.2, 0.3, 0.4]
        for _ in range(runs):
            began = time.perf_counter()
            with Client(url, reference_values=references, roots=roots) as client:
                client.predict("tiny", body)
                first.append(time.perf_counter() - began)
                began = time.perf_counter()
                client.predict("tiny", body)
                later.append(time.perf_counter() - began)
    return {
        "first_ms": round(statistics.median(first) * 1e3, 1),
        "first_ms_worst": round(max(first) * 1e3, 1),
        "later_ms": round(statistics.median(later) * 1e3, 2),
    }


def _each_us(act: Callable[[Any], object], items: list[Any]) -> float:
    times = []
    for item in items:
        began = time.perf_counter()
        act(item)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--first-answer", action="store_true", help="start a server, and time new clients")
    options = parser.parse_args()
    keep_large_buffers()  # as a server does
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
    with tempfile.TemporaryDirectory() as folder:
        report["endpoint"] = measure_endpoint(Path(folder))
        if options.first_answer:
            report["first_answer"] = measure_first_answer(Path(folder, "work"))
    if options.json:
        json.dump(report, sys.stdout, indent=1)
        print()
        return 0
    for name, rows in times.items():
        print(name)
        for step, us in rows.items():
            print(f"  {step:<14} {us:10.1f} us")
    print(f"8 MiB bodies, GB/s: {report['large_gb_per_s']}")
    print(f"the server's own path: {report['endpoint']}")
    if options.first_answer:
        print(f"first verified answer: {report['first_answer']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Somebody between a caller and a service: passes everything on, and each test has it change one thing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from cloister.serve.http import paths

PASSED_ON = (
    "content-type",
    "accept",
    "origin",
    "access-control-request-method",
    "access-control-request-headers",
)
DROPPED = ("content-length", "transfer-encoding", "connection", "date", "server")


class Between:
    """A host that the service's operator controls."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.seen: list[bytes] = []
        """All that passed by: request lines, headers and bodies, both ways."""
        self.change_evidence: Callable[[bytes], bytes] = lambda bundle: bundle
        self.change_request: Callable[[bytes], bytes] = lambda capsule: capsule
        self.change_answer: Callable[[httpx.Response], tuple[int, str, bytes]] = lambda answer: (
            answer.status_code,
            answer.headers.get("content-type", ""),
            answer.content,
        )
        self.times = 1
        """How often each sealed request is sent on; the last answer counts."""

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
        """Pass one request on."""
        passed = {name: value for name, value in headers.items() if name in PASSED_ON}
        if path == paths.GATEWAY and method == "POST":
            for _ in range(self.times - 1):
                httpx.request(method, self.upstream + path, headers=passed, content=body, timeout=60)
            body = self.change_request(body)
        return httpx.request(method, self.upstream + path, headers=passed, content=body, timeout=60)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address, as long as it is there."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(between: Between) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            between.seen.append(f"{self.requestline}\n{self.headers}".encode() + body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = between.ask(self.command, self.path, headers, body)
            status, kind, content = answer.status_code, answer.headers.get("content-type", ""), answer.content
            if self.path.startswith(paths.EVIDENCE) and status == 200:
                content = between.change_evidence(content)
            elif self.path == paths.GATEWAY and self.command == "POST":
                status, kind, content = between.change_answer(answer)
            between.seen.append(content)
            self.send_response(status)
            for name, value in answer.headers.items():
                if name not in DROPPED and name != "content-type":
                    self.send_header(name, value)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._pass()

        def do_POST(self) -> None:
            self._pass()

        def do_OPTIONS(self) -> None:
            self._pass()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    return Handler

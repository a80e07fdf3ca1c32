"""``cloister proxy`` as a real process, used by curl, Node and plain sockets."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.ohttp import bhttp
from cloister.ohttp.gateway import Gateway
from tests.fakes.sealed_service import MR_TD, SealedService

CANARY = "canary-31aa"
ACCEPTS = f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n'


class Proxy:
    """The command in a process of its own."""

    def __init__(
        self, service: SealedService, platform: SimulatedPlatform, folder: Path, *flags: str
    ) -> None:
        (folder / "values.toml").write_text(ACCEPTS)
        (folder / "root.pem").write_bytes(platform.root.public_bytes(Encoding.PEM))
        if not (Path(sys.executable).parent / "cloister").exists():
            pytest.skip("the cloister command is not installed")
        command = [str(Path(sys.executable).parent / "cloister"), "proxy", service.url]
        command += ["-r", str(folder / "values.toml"), "--simulated-root", str(folder / "root.pem")]
        self.process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.url = next((word for word in self.line.split() if word.startswith("http://")), "")

    def stop(self) -> str:
        """End it; what it printed."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=20)
        return self.line + out + err


@pytest.fixture
def proxy(service: SealedService, platform: SimulatedPlatform, tmp_path: Path) -> Iterator[Proxy]:
    """A running proxy to an honest service."""
    started = Proxy(service, platform, tmp_path)
    yield started
    if started.process.poll() is None:
        started.stop()


def test_plain_in_sealed_out(service: SealedService, proxy: Proxy) -> None:
    """What comes in plain arrives sealed, with method, path, query, headers and content."""
    answer = httpx.put(f"{proxy.url}/v2/x?a=1", content=CANARY, headers={"x-own": "yes"})
    assert (answer.json()["method"], answer.json()["path"]) == ("PUT", "/v2/x?a=1")
    assert service.requests[0].header(b"x-own") == b"yes"
    assert not any(CANARY in line or "/v2/x" in line for line in service.outer)
    assert CANARY not in proxy.stop()


def test_curl(service: SealedService, proxy: Proxy) -> None:
    """curl as in the documentation, with a body in chunks."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "-T", "-", f"{proxy.url}/predictions/echo"]
    answer = subprocess.run(command, input=b"abc", capture_output=True, timeout=30, check=True)
    assert json.loads(answer.stdout)["path"] == "/predictions/echo"


def test_a_target_that_is_no_path(service: SealedService, proxy: Proxy) -> None:
    """``OPTIONS *`` speaks to the proxy itself: refused in words, and no fault in its log."""
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert service.requests == []
    assert "Traceback" not in proxy.stop()


def test_node(proxy: Proxy) -> None:
    """Node's fetch."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = (
        "const r = await fetch(process.argv[1], {method: 'POST', body: 'abc'});"
        "console.log(r.status, (await r.json()).path)"
    )
    command = ["node", "--input-type=module", "-e", script, f"{proxy.url}/predictions/echo"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert answer.stdout.split() == ["200", "/predictions/echo"]


def test_node_streams(service: SealedService, proxy: Proxy) -> None:
    """Node's fetch reads an answer piece by piece, sends a body in chunks, and hears of a cut answer."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = """
    const body = new ReadableStream({start(c) { for (const p of ["on", "e"]) c.enqueue(new TextEncoder().encode(p)); c.close(); }});
    const r = await fetch(process.argv[1], {method: "POST", body, duplex: "half"});
    let pieces = 0, text = "";
    const decoder = new TextDecoder();
    try { for await (const piece of r.body) { pieces += 1; text += decoder.decode(piece); } } catch { text = "cut"; }
    console.log(JSON.stringify({status: r.status, text, pieces}));
    """  # noqa: E501
    command = ["node", "--input-type=module", "-e", script, f"{proxy.url}/x"]
    service.answer = lambda request: bhttp.Response(200, (), request.content * 2)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["text"] == "oneone"
    service.change_stream = lambda parts: islice(parts, 3)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["text"] == "cut"


def curl(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run curl."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return subprocess.run(["curl", "-sS", *words], capture_output=True, timeout=30, check=False, **options)


def test_curl_head(service: SealedService, proxy: Proxy) -> None:
    """HEAD brings the headers of the answer, its length included, and no body."""
    service.answer = lambda request: bhttp.Response(200, ((b"content-length", b"1234"), (b"x-a", b"b")))
    done = curl("-I", f"{proxy.url}/v2/health/ready")
    assert done.returncode == 0
    assert b"content-length: 1234" in done.stdout.lower()
    assert service.requests[0].method == b"HEAD"


def test_curl_expects_to_go_on(service: SealedService, proxy: Proxy) -> None:
    """A caller that waits for 100 Continue is told to go on, and the model does not hear of that."""
    service.answer = lambda request: bhttp.Response(200, (), str(len(request.content)).encode())
    done = curl("-v", "-H", "Expect: 100-continue", "-T", "-", f"{proxy.url}/x", input=bytes(3_000_000))
    assert (done.stdout, b"100 Continue" in done.stderr) == (b"3000000", True)
    assert service.requests[0].header(b"expect") is None


def test_headers_of_one_connection(service: SealedService, proxy: Proxy) -> None:
    """What ``Connection`` names stays on this side, and so does a wish to speak another protocol."""
    headers = {"connection": "keep-alive, x-hop, upgrade", "x-hop": "1", "upgrade": "websocket", "x-own": "2"}
    headers |= {"sec-websocket-key": "eDp3AAAAAAAAAAAAAAAAAA==", "sec-websocket-version": "13"}
    assert httpx.get(f"{proxy.url}/x", headers=headers).status_code == 200
    names = {name for name, _ in service.requests[0].headers}
    assert b"x-own" in names
    assert not names & {b"connection", b"x-hop", b"upgrade", b"keep-alive"}


def test_large_bodies(service: SealedService, proxy: Proxy) -> None:
    """Bodies that are much larger than what the proxy keeps pass both ways, whole."""
    service.piece_bytes = 1 << 14
    service.answer = lambda request: bhttp.Response(200, (), request.content[::-1])
    content = bytes(range(256)) * (12 << 12)
    before = resident(proxy)
    assert httpx.post(f"{proxy.url}/x", content=content, timeout=60).content == content[::-1]
    assert resident(proxy) - before < 3 * len(content)


def resident(proxy: Proxy) -> int:
    """Bytes of memory that the process holds."""
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def test_new_keys_behind_it(service: SealedService, proxy: Proxy) -> None:
    """A request that meets a new key is sealed again, so that programs notice nothing; a long one says so."""
    service.answer = lambda request: bhttp.Response(200, (), b"taken")
    assert httpx.post(f"{proxy.url}/x", content=b"one").status_code == 200
    service.gateway = Gateway.generate()
    assert httpx.post(f"{proxy.url}/x", content=b"two").status_code == 200
    service.gateway = Gateway.generate()
    refused = httpx.post(f"{proxy.url}/x", content=bytes(2 << 20))
    assert (refused.status_code, refused.json()["type"]) == (502, "UnknownKeyConfig")
    assert httpx.post(f"{proxy.url}/x", content=bytes(2 << 20)).status_code == 200


def test_health_of_a_service_that_does_not_verify(service: SealedService, proxy: Proxy) -> None:
    """Health says which check failed as soon as the proxy knows, and is well again when the service is."""
    httpx.get(f"{proxy.url}/x")
    honest = service.make_bundle
    service.make_bundle = lambda nonce: honest(bytes(32))
    service.gateway = Gateway.generate()
    httpx.get(f"{proxy.url}/x")
    health = httpx.get(f"{proxy.url}/.well-known/cloister/proxy")
    assert (health.status_code, health.json()["type"]) == (502, "BindingMismatch")
    service.make_bundle = honest
    assert httpx.get(f"{proxy.url}/.well-known/cloister/proxy").status_code == 200


def test_nothing_of_the_content_is_printed(service: SealedService, proxy: Proxy) -> None:
    """Path, query, headers, body and answer are absent from what the proxy prints, in failure too."""
    secret = {"x-own": CANARY, "authorization": f"Bearer {CANARY}"}
    service.answer = lambda request: bhttp.Response(500, ((b"x-a", CANARY.encode()),), CANARY.encode() * 9)
    httpx.post(f"{proxy.url}/{CANARY}?q={CANARY}", content=CANARY, headers=secret)
    service.change_stream = lambda parts: islice(parts, 4)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{proxy.url}/{CANARY}?q={CANARY}", content=CANARY, headers=secret)
    service.streamed = None  # type: ignore[assignment]
    assert httpx.post(f"{proxy.url}/{CANARY}", content=CANARY, headers=secret).status_code == 502
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(f"GET /{CANARY} HTTP/9.9\r\n{CANARY}\r\n\r\n".encode())
        caller.recv(1000)
    assert CANARY not in proxy.stop()


def test_streams(service: SealedService, proxy: Proxy) -> None:
    """Answers come piece by piece; a cut one is an error at the caller, not a short answer."""
    service.answer = lambda request: bhttp.Response(200, (), b"abcdef")
    with httpx.stream("GET", f"{proxy.url}/x") as answer:
        assert b"".join(answer.iter_raw()) == b"abcdef"
    service.change_stream = lambda parts: islice(parts, 3)
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("GET", f"{proxy.url}/x") as answer,
    ):
        answer.read()


def test_health(service: SealedService, proxy: Proxy) -> None:
    """Its own address says what was verified, and makes no evidence anew."""
    given = service.evidence_given
    for _ in range(2):
        health = httpx.get(f"{proxy.url}/.well-known/cloister/proxy")
        assert health.json()["status"] == "verified"
        assert health.json()["models"] == ["echo 1"]
    assert service.evidence_given == given + 1


def test_nothing_goes_to_a_service_that_does_not_verify(service: SealedService, proxy: Proxy) -> None:
    """New keys without honest evidence: 502 with the reason, and nothing has left."""
    httpx.get(f"{proxy.url}/x")
    sent = len(service.requests)
    honest = service.bundle
    service.gateway = Gateway.generate()
    service.make_bundle = lambda nonce: honest(bytes(32))
    answer = httpx.post(f"{proxy.url}/x", content=CANARY)
    assert (answer.status_code, answer.json()["code"]) == (502, 502)
    assert len(service.requests) == sent
    printed = proxy.stop()
    assert "refused" in printed
    assert CANARY not in printed


def test_does_not_start_without_verification(
    service: SealedService, platform: SimulatedPlatform, tmp_path: Path
) -> None:
    """A service that is not acceptable: no port, exit code 3, one line."""
    (tmp_path / "values.toml").write_text(ACCEPTS)
    honest = service.bundle
    service.make_bundle = lambda nonce: honest(bytes(32))
    refused = Proxy(service, platform, tmp_path)
    _, said = refused.process.communicate(timeout=20)
    assert refused.process.returncode == 3
    assert not refused.line
    assert len(said.strip().splitlines()) == 1


def test_web_pages_are_kept_out(service: SealedService, proxy: Proxy) -> None:
    """A foreign origin or a rebound host name is refused before anything is sent; so are images and links."""
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        assert httpx.post(f"{proxy.url}/x", content=b"a", headers=headers).status_code == 403
    for site in ("cross-site", "same-site"):  # what a browser sends without an origin
        assert httpx.get(f"{proxy.url}/x", headers={"sec-fetch-site": site}).status_code == 403
    assert service.requests == []
    assert httpx.get(f"{proxy.url}/x", headers={"sec-fetch-site": "none"}).status_code == 200


def test_pages_that_are_allowed(service: SealedService, platform: SimulatedPlatform, tmp_path: Path) -> None:
    """The page of an allowed origin may ask, and no image of another one."""
    started = Proxy(service, platform, tmp_path, "--allow-origin", "https://app.example")
    asked = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}
    assert httpx.post(f"{started.url}/x", content=b"a", headers=asked).status_code == 200
    assert httpx.get(f"{started.url}/x", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    started.stop()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "nonsense", "127.0.0.1:99999"])
def test_listens_on_loopback_only(
    service: SealedService, platform: SimulatedPlatform, tmp_path: Path, listen: str
) -> None:
    """Another address needs to be asked for in words."""
    refused = Proxy(service, platform, tmp_path, "--listen", listen)
    refused.process.communicate(timeout=20)
    assert refused.process.returncode == 2


def test_unix_socket(service: SealedService, platform: SimulatedPlatform, tmp_path: Path) -> None:
    """A UNIX socket that only its user can open, removed at the end."""
    path = tmp_path / "proxy.sock"
    started = Proxy(service, platform, tmp_path, "--unix", str(path))
    assert path.stat().st_mode & 0o077 == 0
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
        assert http.post("http://localhost/x", content=b"a").status_code == 200
    started.stop()
    assert not path.exists()


def test_a_caller_that_leaves_does_no_harm(service: SealedService, proxy: Proxy) -> None:
    """A connection that is closed in the middle of its request, then an ordinary request."""
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf")
    assert httpx.get(f"{proxy.url}/x").status_code == 200

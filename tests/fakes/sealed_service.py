"""A small protected service on loopback HTTPS: real evidence of a simulated platform, the real gateway.

It answers each prediction with what it was asked, and each test can make it misbehave in one place.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from cloister.attest.model import Endorsements, Evidence
from cloister.attest.service import LoadedModel, ServiceIdentity, make_bundle
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.errors import BadCiphertext, Replayed, UnknownKeyConfig
from cloister.ohttp import bhttp, chunked
from cloister.ohttp.bhttp_stream import Writer
from cloister.ohttp.capsule import KEY_PROBLEM, RESPONSE_TYPE
from cloister.ohttp.gateway import Gateway, StreamedRequest
from cloister.ohttp.replay import check_date

MR_TD = bytes(range(48))
SETTINGS_DIGEST = bytes(range(48, 96))
POLICY_DIGEST = bytes(range(100, 148))
MODELS = (
    LoadedModel(name="echo", version="1", container_digest="ab" * 32, signer="ed25519:x", sandbox="none"),
)

Answer = Callable[[bhttp.Request], bhttp.Response]


class PlatformAttester:
    """An Attester over a simulated platform, with registers that a test chooses."""

    scheme = "tdx"

    def __init__(self, platform: SimulatedPlatform) -> None:
        self.platform = platform

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A quote over ``report_data``."""
        return Evidence(
            self.scheme, self.platform.quote(report_data, mr_td=MR_TD, mr_config_id=SETTINGS_DIGEST)
        )

    def get_endorsements(self) -> Endorsements:
        """The platform's collateral."""
        return self.platform.endorsements(datetime.now(UTC))


@dataclass(frozen=True)
class TlsKey:
    """A self-signed certificate with its key."""

    folder: Path
    spki: bytes

    @classmethod
    def make(cls, folder: Path) -> TlsKey:
        """A new one, saved in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloister")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        (folder / "tls.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cls(folder, key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def context(self) -> ssl.SSLContext:
        """For a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "tls.pem", self.folder / "tls.key")
        return context


def echo(request: bhttp.Request) -> bhttp.Response:
    """Says what was asked."""
    heard = {
        "method": request.method.decode(),
        "path": request.path.decode(),
        "type": (request.header(b"content-type") or b"").decode(),
        "content": base64.b64encode(request.content).decode(),
    }
    return bhttp.Response(200, ((b"content-type", b"application/json"),), json.dumps(heard).encode())


class SealedService:
    """The service's parts; a test replaces the one that it attacks."""

    def __init__(self, platform: SimulatedPlatform, tls: TlsKey) -> None:
        self.attester = PlatformAttester(platform)
        self.tls = tls
        self.gateway = Gateway.generate()
        self.attested_spki = tls.spki
        self.make_bundle: Callable[[bytes], bytes] = self.bundle
        self.answer: Answer = echo
        self.change_answer: Callable[[bytes], bytes] = lambda sealed: sealed
        self.change_stream: Callable[[Iterator[bytes]], Iterator[bytes]] = lambda parts: parts
        self.render: Callable[[bhttp.Response], bytes] = bhttp.render_response
        self.outer_headers: dict[str, str] = {}
        """Of each of its answers, in the clear."""
        self.piece_bytes = 3
        """Content of a chunk of a streamed answer."""
        self.evidence_given = 0
        self.policy_digest = POLICY_DIGEST
        self.capsules: list[bytes] = []
        self.requests: list[bhttp.Request] = []
        self.outer: list[str] = []
        self.connections: list[socket.socket] = []
        """Every one that was made, closed ones too."""
        self.url = ""

    def identity(self) -> ServiceIdentity:
        """What its evidence binds."""
        return ServiceIdentity(
            tls_spki=self.attested_spki,
            ohttp_key_config=self.gateway.key_config,
            settings_digest=SETTINGS_DIGEST,
            policy_digest=self.policy_digest,
            callers_digest=bytes(48),
            models=MODELS,
        )

    def bundle(self, nonce: bytes) -> bytes:
        """Honest evidence."""
        return make_bundle(self.attester, self.identity(), nonce)

    def evidence(self, target: str) -> tuple[int, str, bytes]:
        """Answer to the evidence request."""
        self.evidence_given += 1
        text = parse_qs(urlsplit(target).query)["nonce"][0]
        nonce = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return 200, "application/json", self.make_bundle(nonce)

    def sealed(self, capsule: bytes) -> tuple[int, str, bytes]:
        """Answer to a capsule."""
        self.capsules.append(capsule)
        try:
            opened, sealer = self.gateway.open(capsule)
        except (UnknownKeyConfig, BadCiphertext):
            problem = {"type": KEY_PROBLEM, "title": "key not in use"}
            return 400, "application/problem+json", json.dumps(problem).encode()
        except Replayed:
            return 409, "application/problem+json", b'{"type":"about:blank"}'
        request = bhttp.parse_request(opened)
        check_date(request, datetime.now(UTC))
        self.requests.append(request)
        answer = self.render(self.answer(request))
        return 200, RESPONSE_TYPE, self.change_answer(sealer.seal(answer))

    def streamed(self, data: bytes) -> tuple[int, str, Iterator[bytes]]:
        """Answer to a chunked request: the same answers, three bytes of content at a time."""
        self.capsules.append(data)
        stream = self.gateway.open_stream()
        try:
            pieces = [*stream.receive(data), stream.finish()]
        except (UnknownKeyConfig, BadCiphertext):
            problem = {"type": KEY_PROBLEM, "title": "key not in use"}
            return 400, "application/problem+json", iter([json.dumps(problem).encode()])
        except Replayed:
            return 409, "application/problem+json", iter([b'{"type":"about:blank"}'])
        request = bhttp.parse_request(b"".join(pieces))
        check_date(request, datetime.now(UTC))
        self.requests.append(request)
        return 200, chunked.RESPONSE_TYPE, self.change_stream(self._answer_parts(request, stream))

    def _answer_parts(self, request: bhttp.Request, stream: StreamedRequest) -> Iterator[bytes]:
        answer = self.answer(request)
        sealer = stream.response_sealer()
        yield sealer.begin()
        yield sealer.seal(Writer.head(answer))
        size = self.piece_bytes
        for start in range(0, len(answer.content), size):
            yield sealer.seal(Writer.content(answer.content[start : start + size]))
        yield sealer.seal(Writer.end(), final=True)

    def hang_up(self) -> None:
        """End every connection, as a process that dies."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def restart(self, tls: TlsKey) -> None:
        """New keys, and every connection gone; it listens again at once."""
        self.gateway = Gateway.generate()
        self.attested_spki = tls.spki
        self._context.load_cert_chain(tls.folder / "tls.pem", tls.folder / "tls.key")
        self.hang_up()

    @contextmanager
    def serving(self, tls: TlsKey | None = None, *, port: int = 0, plain: bool = False) -> Iterator[str]:
        """Serve under ``tls`` (by default the attested key); yields the base address."""
        server = _Server(("127.0.0.1", port), _handler(self))
        if not plain:
            self._context = (tls or self.tls).context()
            server.socket = self._context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            self.url = f"{'http' if plain else 'https'}://127.0.0.1:{server.server_port}"
            yield self.url
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            self.hang_up()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Handshakes that clients break off are part of the tests."""


def _handler(service: SealedService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 20
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            service.connections.append(self.connection)

        def do_OPTIONS(self) -> None:
            self._send(204, "text/plain", b"")

        def end_headers(self) -> None:
            # Pages of any origin: what is protected here is not who asks.
            self.send_header("access-control-allow-origin", "*")
            self.send_header("access-control-allow-headers", "content-type")
            for name, value in service.outer_headers.items():
                self.send_header(name, value)
            super().end_headers()

        def do_GET(self) -> None:
            service.outer.append(f"{self.requestline}\n{self.headers}")
            self._send(*service.evidence(self.path))

        def do_POST(self) -> None:
            service.outer.append(f"{self.requestline}\n{self.headers}")
            assert self.path == "/.well-known/ohttp-gateway"
            content = self._content()
            if self.headers["content-type"] == chunked.REQUEST_TYPE:
                self._send_parts(*service.streamed(content))
            else:
                self._send(*service.sealed(content))

        def _content(self) -> bytes:
            if "content-length" in self.headers:
                return self.rfile.read(int(self.headers["content-length"]))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def _send_parts(self, status: int, kind: str, parts: Iterator[bytes]) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("connection", "close")
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()
            self.close_connection = True

        def _send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    return Handler

"""Vendors' services on loopback HTTP: Intel's PCS (or a PCCS) and AMD's KDS, serving what a test gives them.

Paths, parameters, headers and encodings are those of the real services; each test can change any answer.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.dcap import DcapEndorsements
from cloister.attest.snp import SnpEndorsements
from cloister.attest.snp.kds import products_of, vcek_url
from cloister.attest.snp.report import parse_report

API = "/certification/v4"


@dataclass(frozen=True)
class Reply:
    """One HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    """Between one byte of the body and the next."""


NOT_FOUND = Reply(404, b"Not found")
Change = Callable[[str, Reply], Reply]


class FakeVendors:
    """What the services know, what they were asked, and how a test makes them misbehave."""

    def __init__(self) -> None:
        self.replies: dict[tuple[str, tuple[tuple[str, str], ...]], Reply] = {}
        self.asked: list[str] = []
        self.change: Change = lambda path, reply: reply
        self.url = ""

    def add_intel(
        self, tee: str, fmspc: str, ca: str, known: DcapEndorsements, *, pccs: bool = False
    ) -> None:
        """Know a family of platforms. A PCCS sends CRLs as hexadecimal text."""
        encode = (lambda der: der.hex().encode()) if pccs else bytes
        updated = ("update", "standard")
        self._add(
            f"/{tee}{API}/tcb",
            (("fmspc", fmspc.upper()), updated),
            _signed("tcbInfo", known.tcb_info, known.tcb_info_signature),
            {"TCB-Info-Issuer-Chain": quote(known.tcb_info_issuer_chain)},
        )
        self._add(
            f"/{tee}{API}/qe/identity",
            (updated,),
            _signed("enclaveIdentity", known.qe_identity, known.qe_identity_signature),
            {"SGX-Enclave-Identity-Issuer-Chain": quote(known.qe_identity_issuer_chain)},
        )
        self._add(
            f"/sgx{API}/pckcrl",
            (("ca", ca), ("encoding", "der")),
            encode(known.pck_crl),
            {"SGX-PCK-CRL-Issuer-Chain": quote(known.pck_crl_issuer_chain)},
        )
        self._add(f"/sgx{API}/rootcacrl", (), encode(known.root_ca_crl), {})

    def add_amd(self, raw_report: bytes, known: SnpEndorsements) -> None:
        """Know the chip of a report."""
        report = parse_report(raw_report)
        product, kind = products_of(report)[0], report.signing_key
        if known.vcek is not None and any(report.chip_id):
            parts = urlsplit(vcek_url(report, product, base="http://kds"))
            self._add(parts.path, tuple(parse_qsl(parts.query)), known.vcek, {})
        authority = known.ask or known.asvk or b""
        self._add(f"/{kind}/v1/{product}/cert_chain", (), _pem(authority) + _pem(known.ark or b""), {})
        self._add(f"/{kind}/v1/{product}/crl", (), known.crl or b"", {})

    def answer(self, target: str) -> Reply:
        """The reply to a request's target."""
        self.asked.append(target)
        parts = urlsplit(target)
        key = (parts.path, tuple(sorted(parse_qsl(parts.query, strict_parsing=bool(parts.query)))))
        return self.change(parts.path, self.replies.get(key, NOT_FOUND))

    def break_path(self, part: str, **change: Any) -> None:
        """Change the replies whose path contains ``part``."""
        self.change = lambda path, reply: replace(reply, **change) if part in path else reply

    def _add(
        self, path: str, query: tuple[tuple[str, str], ...], body: bytes, headers: dict[str, str]
    ) -> None:
        self.replies[path, tuple(sorted(query))] = Reply(200, body, headers)


@contextmanager
def serving(vendors: FakeVendors, tls: ssl.SSLContext | None = None) -> Iterator[FakeVendors]:
    """Run the services on a free port; ``vendors.url`` is their base."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            reply = vendors.answer(self.path)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if not reply.pause_s:
                self.wfile.write(reply.body)
                return
            for octet in reply.body:
                self.wfile.write(bytes([octet]))
                self.wfile.flush()
                time.sleep(reply.pause_s)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients hang up when they have had enough

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    vendors.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    try:
        yield vendors
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _signed(name: str, text: str, signature: bytes) -> bytes:
    """As Intel writes it: the signed text stands in the document as it was signed."""
    return f'{{"{name}":{text},"signature":{json.dumps(signature.hex())}}}'.encode()


def _pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)

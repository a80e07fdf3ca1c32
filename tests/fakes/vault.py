"""A stand-in for HashiCorp Vault's transit engine, over real HTTP: paths, members and statuses of its API.

It is not Vault. It encrypts as Vault does (AES-256-GCM, ``vault:v<version>:<base64>``), keeps versions,
honours ``min_decryption_version`` and checks ``associated_data`` and the token; policies, leases and audit it
has none.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class FakeVault:
    """A server on loopback with one transit key; ``seen`` holds the bodies of every request."""

    def __init__(self, *, token: str | None = "s.token", name: str = "cloister", **facts: Any) -> None:
        self.token, self.name = token, name
        self.facts: dict[str, Any] = {"type": "aes256-gcm96", "exportable": False, **facts}
        self.keys = {1: AESGCM(secrets.token_bytes(32))}
        self.min_decryption_version = 1
        self.seen: list[bytes] = []
        self.fail_with: int | None = None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # No connection outlives the server.

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.answer()

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                fake.seen.append(raw)
                status, body = fake.handle(self.path, self.headers.get("X-Vault-Token"), raw)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        """Stop, as when the machine goes down."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def handle(self, path: str, token: str | None, raw: bytes) -> tuple[int, dict[str, Any]]:
        """One request of the HTTP API."""
        if self.fail_with is not None:
            return self.fail_with, {"errors": ["internal error with CANARY"]}
        if self.token is not None and token != self.token:
            return 403, {"errors": ["permission denied"]}
        body = json.loads(raw or b"{}")
        parts = path.removeprefix("/v1/transit/").split("/")
        if parts[1] != self.name:
            return 404, {"errors": []}
        newest = max(self.keys)
        match parts:
            case ["keys", _]:
                facts = {"name": self.name, "latest_version": newest, **self.facts}
                return 200, {"data": {**facts, "min_decryption_version": self.min_decryption_version}}
            case ["keys", _, "rotate"]:
                self.keys[newest + 1] = AESGCM(secrets.token_bytes(32))
                return 200, {"data": {}}
            case ["keys", _, "config"]:
                self.min_decryption_version = int(body["min_decryption_version"])
                return 200, {"data": {}}
            case ["encrypt", _]:
                nonce = secrets.token_bytes(12)
                sealed = self.keys[newest].encrypt(
                    nonce, base64.b64decode(body["plaintext"]), base64.b64decode(body["associated_data"])
                )
                text = f"vault:v{newest}:{base64.b64encode(nonce + sealed).decode()}"
                return 200, {"data": {"ciphertext": text, "key_version": newest}}
            case ["decrypt", _]:
                return self._decrypt(body)
        return 404, {"errors": []}

    def _decrypt(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        _, version, encoded = body["ciphertext"].split(":")
        number = int(version.removeprefix("v"))
        if number < self.min_decryption_version or number not in self.keys:
            return 400, {"errors": ["ciphertext or signature version is disallowed by policy (too old)"]}
        raw, associated = base64.b64decode(encoded), base64.b64decode(body["associated_data"])
        try:
            plain = self.keys[number].decrypt(raw[:12], raw[12:], associated)
        except InvalidTag:
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}

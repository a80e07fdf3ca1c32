"""An issuer of JSON Web Tokens with real keys: discovery and keys over HTTP on loopback."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

EC = ECKey.generate_key("P-256", {"kid": "ec", "alg": "ES256", "use": "sig"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})


class LocalIssuer:
    """Discovery and keys over HTTP on loopback."""

    def __init__(self) -> None:
        self.keys: list[Any] = [EC, RSA, ED]
        self.asked: list[str] = []
        self.discovery: dict[str, Any] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                body = issuer.answer(self.path)
                self.send_response(200 if body else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.discovery = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, path: str) -> bytes:
        """The document at this path."""
        if path == "/keys":
            return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys]}).encode()
        return json.dumps(self.discovery).encode() if path.startswith("/.well-known/") else b""

    def token(self, key: Any = EC, alg: str = "ES256", **changes: Any) -> bytes:
        """A token as this issuer makes it, with changes; None leaves a claim out."""
        return make_token(self.url, key, alg, **changes)

    def close(self) -> None:
        """Be gone."""
        self.server.shutdown()
        self.server.server_close()


def make_token(url: str, key: Any = EC, alg: str = "ES256", **changes: Any) -> bytes:
    """A token of the issuer at ``url``, with changes; None leaves a claim out."""
    now = int(time.time())
    claims = {
        "iss": url,
        "aud": ["models", "other"],
        "sub": "alice",
        "iat": now,
        "exp": now + 60,
        "tenant": "acme",
        "groups": ["radiology"],
        "scope": "predict explain",
    } | changes
    header = {"alg": alg, "kid": key.kid}
    claims = {name: value for name, value in claims.items() if value is not None}
    # Not jwt.encode, which has no way to write what is no Unicode.
    return jws.serialize_compact(header, json.dumps(claims).encode(), key, algorithms=[alg]).encode()

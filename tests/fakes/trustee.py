"""A stand-in for a Trustee KBS over real HTTPS: its routes, messages, cookie, error bodies and JWE, 0.4.0.

It is written from the protocol document and the OpenAPI description, not from our broker, and shares no code
with it: the JWE comes from another library (joserfc), the messages are plain dictionaries. It checks what a
KBS checks of a client's messages and that ``report_data`` in a TDX quote is the hash that the protocol says;
it does not verify the quote, which is an attestation service's business.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import rfc8785
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwe
from joserfc.jwk import ECKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.kbs.server import bind
from cloister.kbs.tls import make_certificate

PREFIX = "https://github.com/confidential-containers/kbs/errors/"
REPORT_DATA = slice(48 + 520, 48 + 584)
"""Of a TDX quote: header of 48 bytes, then the body."""


class FakeTrustee:
    """One KBS. Attributes change how it behaves; ``seen`` holds the parsed messages that it was sent."""

    def __init__(self, folder: Path) -> None:
        self.resources: dict[str, bytes] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.seen: list[dict[str, Any]] = []
        self.challenge_extra: Any = ""
        self.hash_algorithm = "sha384"
        self.deny_status = 401
        self.spaced_header = False
        self.denied: set[str] = set()
        folder.mkdir(exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        self.ca = folder / "kbs.pem"
        self.ca.write_bytes(make_certificate(key, "127.0.0.1", datetime.now(UTC)).public_bytes(Encoding.PEM))
        private = folder / "kbs.key"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        app = Starlette(routes=[Route("/kbs/v0/{path:path}", self.api, methods=["GET", "POST"])])
        self._listener = bind("127.0.0.1", 0)
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, ssl_certfile=str(self.ca), ssl_keyfile=str(private), log_config=None,
                ssl_version=ssl.PROTOCOL_TLS_SERVER,
            )
        )  # fmt: skip
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    async def api(self, request: Request) -> Response:
        """One request: the first segment is the endpoint or plugin, as in the original."""
        path, body = request.path_params["path"], await request.body()
        plugin, _, rest = path.partition("/")
        if plugin == "auth" and request.method == "POST":
            return self._auth(body)
        if plugin == "attest" and request.method == "POST":
            return self._attest(request.cookies.get("kbs-session-id"), body)
        if plugin == "resource" and request.method == "GET":
            return self._resource(request.cookies.get("kbs-session-id"), rest)
        return _error("PluginNotFound", f"Plugin {plugin} not found", 404)

    def _auth(self, body: bytes) -> Response:
        message = json.loads(body)
        self.seen.append(message)
        if message["version"] != "0.4.0":
            return _error("AttestationError", "Attestation error: RCAR handshake Auth failed", 401)
        assert message["tee"] in ("tdx", "sgx", "snp", "sample")
        session = uuid.uuid4().hex
        nonce = base64.b64encode(secrets.token_bytes(32)).decode()
        self.sessions[session] = {"nonce": nonce}
        answer = _json({"nonce": nonce, "extra-params": self.challenge_extra})
        return _with_cookie(answer, session)

    def _attest(self, session: str | None, body: bytes) -> Response:
        message = json.loads(body)
        self.seen.append(message)
        known = self.sessions.get(session or "")
        if known is None:
            return _error("AttestationError", "Attestation error: RCAR handshake Attest failed", 401)
        runtime, evidence = message["runtime-data"], message["tee-evidence"]
        assert set(message) - {"init-data"} == {"runtime-data", "tee-evidence"}
        assert set(evidence) == {"primary_evidence", "additional_evidence"}
        assert set(runtime["tee-pubkey"]) in ({"kty", "crv", "alg", "x", "y"}, {"kty", "alg", "n", "e"})
        if runtime["nonce"] != known["nonce"]:
            return _error("AttestationError", "Attestation error: RCAR handshake Attest failed", 401)
        hashed = {
            "tee-pubkey": runtime["tee-pubkey"],
            "nonce": known["nonce"],
            "additional-evidence": evidence["additional_evidence"],
        }
        digest = hashlib.new(self.hash_algorithm, rfc8785.dumps(hashed)).digest()
        quote = base64.b64decode(evidence["primary_evidence"]["quote"])
        if quote[REPORT_DATA] != digest.ljust(64, b"\0"):
            return _error("AttestationError", "Attestation error: RCAR handshake Attest failed", 401)
        known["key"] = runtime["tee-pubkey"]
        return _with_cookie(_json({"token": "e30.e30.e30"}), str(session))

    def _resource(self, session: str | None, path: str) -> Response:
        known = self.sessions.get(session or "", {})
        if "key" not in known:
            return _error("TokenNotFound", "Attestation Token not found", 401)
        if path in self.denied:
            return _error("PolicyDeny", "Access denied by policy", self.deny_status)
        if path not in self.resources:
            return _error("PluginInternalError", "Plugin internal error", 401)
        return _json(self._jwe(known["key"], self.resources[path]))

    def _jwe(self, jwk: dict[str, str], data: bytes) -> dict[str, str]:
        if self.spaced_header:
            return _spaced_rsa(jwk, data)
        key: ECKey | RSAKey = (ECKey if jwk["kty"] == "EC" else RSAKey).import_key(jwk)
        header = {"alg": jwk["alg"], "enc": "A256GCM"}
        compact = jwe.encrypt_compact(header, data, key, algorithms=[jwk["alg"], "A256GCM"])
        names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
        return dict(zip(names, compact.split("."), strict=True))


def _spaced_rsa(jwk: dict[str, str], data: bytes) -> dict[str, str]:
    """A header with spaces in its JSON, as other implementations of the protocol write it."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    def number(name: str) -> int:
        return int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "=="), "big")

    public = rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
    content_key, iv = secrets.token_bytes(32), secrets.token_bytes(12)
    protected = _b64(b'{"alg": "RSA-OAEP-256", "enc": "A256GCM"}')
    sealed = AESGCM(content_key).encrypt(iv, data, protected.encode())
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return {
        "protected": protected,
        "encrypted_key": _b64(public.encrypt(content_key, oaep)),
        "iv": _b64(iv),
        "ciphertext": _b64(sealed[:-16]),
        "tag": _b64(sealed[-16:]),
    }


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _json(document: Any) -> Response:
    return Response(json.dumps(document), media_type="application/json")


def _with_cookie(answer: Response, session: str) -> Response:
    """The original sets name and expiry, and neither path nor flags."""
    expires = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    answer.headers["set-cookie"] = f"kbs-session-id={session}; Expires={expires}"
    return answer


def _error(variant: str, detail: str, status: int) -> Response:
    """The original's error bodies have no content type."""
    return Response(json.dumps({"type": PREFIX + variant, "detail": detail}), status)

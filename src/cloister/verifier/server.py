"""The verifier over HTTP: ``POST /v1/verdict?nonce=`` with a bundle, ``GET /v1/keys``, ``GET /healthz``.

It keeps nothing and holds nothing secret but its signing key. Whoever can reach it can ask: what it says of a
service is true for everybody who accepts its reference values.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import anyio.to_thread
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import MAX_BUNDLE_BYTES, NONCE_MAX_BYTES, NONCE_MIN_BYTES
from cloister.attest.token import DEFAULT_TTL_S
from cloister.errors import CloisterError, MalformedInput, PolicyDenied, VerificationError
from cloister.verifier.verdict import issue_verdict

MEDIA_TYPE = "application/eat+jwt"
_STATUSES: tuple[tuple[type[CloisterError], int], ...] = (
    (MalformedInput, 400),
    (PolicyDenied, 403),
    (VerificationError, 422),
    (CloisterError, 500),
)


@dataclass(frozen=True, slots=True)
class Verifier:
    """What one verifier goes by."""

    reference_values: ReferenceValues
    key: ec.EllipticCurvePrivateKey
    roots: Sequence[x509.Certificate] | None = None
    ttl_s: float = DEFAULT_TTL_S

    def jwk(self) -> dict[str, str]:
        """The public key, for whoever shall believe this verifier."""
        numbers = self.key.public_key().public_numbers()
        x, y = (
            base64.urlsafe_b64encode(value.to_bytes(32, "big")).rstrip(b"=").decode()
            for value in (numbers.x, numbers.y)
        )
        return {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "x": x, "y": y}


def create_verifier(verifier: Verifier, *, origins: Sequence[str] = ()) -> Starlette:
    """The verifier as an ASGI application.

    Args:
        origins: web origins whose pages may ask it; ``*`` for any.
    """

    async def verdict(request: Request) -> Response:
        nonce = _nonce(request)
        bundle = await _body(request)
        issue = partial(
            issue_verdict,
            bundle,
            nonce=nonce,
            reference_values=verifier.reference_values,
            key=verifier.key,
            now=datetime.now(UTC),
            roots=verifier.roots,
            ttl_s=verifier.ttl_s,
        )
        token = await anyio.to_thread.run_sync(issue)
        return PlainTextResponse(token, media_type=MEDIA_TYPE, headers={"cache-control": "no-store"})

    async def keys(_: Request) -> Response:
        return JSONResponse({"keys": [verifier.jwk()]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "Healthy"})

    routes = [
        Route("/v1/verdict", verdict, methods=["POST"]),
        Route("/v1/keys", keys, methods=["GET"]),
        Route("/healthz", health, methods=["GET"]),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["content-type"],
    )
    return Starlette(
        routes=routes,
        middleware=[cors] if origins else [],
        exception_handlers={CloisterError: _on_error, ClientDisconnect: _on_leave},
    )


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, CloisterError)
    status = next(number for kind, number in _STATUSES if isinstance(error, kind))
    reasons = getattr(error, "reasons", ())
    message = "; ".join((error.message, *reasons)) if status != 500 else "the verifier failed"
    return JSONResponse({"code": status, "type": type(error).__name__, "message": message}, status)


async def _on_leave(_: Request, error: Exception) -> Response:
    return Response(status_code=400)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BUNDLE_BYTES:
            raise MalformedInput(f"evidence bundle is over {MAX_BUNDLE_BYTES} bytes")
    return bytes(body)


def _nonce(request: Request) -> bytes:
    values = request.query_params.getlist("nonce")
    if len(values) != 1 or len(values[0]) > 2 * NONCE_MAX_BYTES:
        raise MalformedInput("expected one nonce in the query")
    try:
        text = values[0].rstrip("=")
        nonce = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise MalformedInput("nonce is not base64url") from error
    if not NONCE_MIN_BYTES <= len(nonce) <= NONCE_MAX_BYTES:
        raise MalformedInput(f"nonce has {len(nonce)} bytes, expected {NONCE_MIN_BYTES} to {NONCE_MAX_BYTES}")
    return nonce

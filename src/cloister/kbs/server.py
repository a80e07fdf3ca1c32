"""The broker over HTTPS: routes, limits and status codes. What is decided, ``cloister.kbs.broker`` decides.

=========================================== ====== ==================== ==================================
path                                        method credential           answer
=========================================== ====== ==================== ==================================
/kbs/v0/auth                                POST   none                 challenge, session cookie
/kbs/v0/attest                              POST   session cookie       attestation result token
/kbs/v0/resource/{repository}/{type}/{tag}  GET    cookie or bearer     JWE; ``?version=n`` for an older one
same                                        POST   admin bearer         raw body stored as a new version
same                                        DELETE admin bearer         all versions, or ``?version=n``
/kbs/v0/resource                            GET    admin bearer         every stored version
/healthz                                    GET    none                 ``{"status": "ok"}``
=========================================== ====== ==================== ==================================
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from structlog.typing import FilteringBoundLogger

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.model import Endorsements
from cloister.attest.verifier import parse_endorsements
from cloister.errors import CloisterError, ConfigError, MalformedInput
from cloister.kbs import protocol
from cloister.kbs.broker import Broker, Refused
from cloister.kbs.logs import json_logger
from cloister.kbs.reload import ReloadedFile
from cloister.kbs.sessions import SessionTable
from cloister.kbs.state import BrokerState, open_state
from cloister.policy.cedar import CedarPolicy, release_policy
from cloister.settings import KeysSettings

MAX_AUTH_BYTES = 16 << 10
MAX_ATTEST_BYTES = 1 << 20
MAX_RESOURCE_BYTES = 1 << 20
_GRACE_S = 5


class TooLarge(MalformedInput):
    """A body over the limit of its route."""


class Routes:
    """The HTTP handlers of one broker; each reads a bounded body and hands over to a thread."""

    def __init__(self, broker: Broker, log: FilteringBoundLogger) -> None:
        self._broker = broker
        self._log = log

    def table(self) -> list[Route]:
        """Every route."""
        resource = "/kbs/v0/resource/{path:path}"
        return [
            Route("/kbs/v0/auth", self.auth, methods=["POST"]),
            Route("/kbs/v0/attest", self.attest, methods=["POST"]),
            Route("/kbs/v0/resource", self.list_resources, methods=["GET"]),
            Route(resource, self.get_resource, methods=["GET"]),
            Route(resource, self.post_resource, methods=["POST"]),
            Route(resource, self.delete_resource, methods=["DELETE"]),
            Route("/kbs/v0/{plugin}/{rest:path}", _no_plugin, methods=["GET", "POST", "DELETE"]),
            Route("/healthz", _health, methods=["GET"]),
        ]

    async def auth(self, request: Request) -> Response:
        """Step 1 of the protocol."""
        body = await _body(request, MAX_AUTH_BYTES)
        session_id, challenge = await run_in_threadpool(self._broker.challenge, body)
        response = Response(protocol.render(challenge), media_type="application/json")
        response.set_cookie(protocol.COOKIE, session_id, httponly=True, secure=True, samesite="strict")
        return response

    async def attest(self, request: Request) -> Response:
        """Step 2 of the protocol."""
        body = await _body(request, MAX_ATTEST_BYTES)
        session_id = request.cookies.get(protocol.COOKIE)
        answer = await run_in_threadpool(self._broker.attest, session_id, body)
        return Response(protocol.render(answer), media_type="application/json")

    async def get_resource(self, request: Request) -> Response:
        """Step 3 of the protocol."""
        message = await run_in_threadpool(
            self._broker.release,
            _path(request),
            session_id=request.cookies.get(protocol.COOKIE),
            token=_bearer(request),
        )
        return JSONResponse(message)

    async def post_resource(self, request: Request) -> Response:
        """Store a version."""
        path = _path(request)
        body = await _body(request, MAX_RESOURCE_BYTES)
        stored = await run_in_threadpool(self._broker.store, path, body, token=_bearer(request))
        return JSONResponse({"version": stored.version})

    async def delete_resource(self, request: Request) -> Response:
        """Delete versions."""
        await run_in_threadpool(self._broker.delete, _path(request), token=_bearer(request))
        return JSONResponse({})

    async def list_resources(self, request: Request) -> Response:
        """Every stored version, never its content."""
        stored = await run_in_threadpool(self._broker.resources, token=_bearer(request))
        return JSONResponse(
            [
                {"uri": f"kbs:///{v.path}", "version": v.version, "bytes": v.size, "created": v.created}
                for v in stored
            ]
        )

    async def on_error(self, _request: Request, error: Exception) -> Response:
        """Every failure as an error body of the protocol; of what is unexpected only the log learns more."""
        if isinstance(error, Refused):
            self._log.debug("request refused", variant=error.variant, detail=error.message)
            return _error(error.variant, error.message)
        if isinstance(error, TooLarge):
            return _error("SerdeError", error.message, status=413)
        if isinstance(error, HTTPException):
            return _error("InvalidRequestPath", "no such path or method", status=error.status_code)
        reason = error.message if isinstance(error, CloisterError) else ""
        self._log.error("request failed", error=type(error).__name__, reason=reason)
        if isinstance(error, CloisterError):
            return _error("PluginInternalError", "the broker cannot do this now; its log says why")
        return _error("PluginInternalError", "internal error", status=500)


class _Server(uvicorn.Server):
    """Ends normally on SIGTERM and SIGINT; the original raises the signal again after it has stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        kept = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)


def create_app(settings: KeysSettings, *, log: FilteringBoundLogger | None = None) -> Starlette:
    """The broker as an ASGI application; opens the state folder at once and closes it with the application.

    Raises:
        ConfigError: a file of the state folder or of the settings cannot be used.
    """
    log = log or json_logger(settings.log_level)
    now = datetime.now(UTC)
    policy = _policy_source(settings)
    root = _simulated_root(settings)
    state = open_state(settings, now)
    broker = Broker(
        state,
        SessionTable(settings.session_ttl_s),
        policy=policy,
        reference_values=_reference_source(settings),
        endorsements=_endorsements_source(settings),
        simulated_root=root,
        token_ttl_s=settings.token_ttl_s,
        log=log,
    )
    if root is not None:
        log.warning("a simulated root is trusted: keys may go to TEEs that protect nothing")
    routes = Routes(broker, log)
    handlers: dict[Any, Any] = dict.fromkeys(
        (CloisterError, HTTPException, ClientDisconnect, Exception), routes.on_error
    )
    app = Starlette(routes=routes.table(), exception_handlers=handlers, lifespan=_closing(state))
    app.state.broker = broker
    return app


def run_broker(settings: KeysSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the address cannot be bound, or a file cannot be used.
    """
    log = json_logger(settings.log_level)
    app = create_app(settings, log=log)
    listener = bind(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    certificate = Path(settings.folder).absolute() / "tls.pem"
    log.info("listening", url=f"https://{shown}:{port}", certificate=str(certificate))
    with listener:
        _Server(uvicorn_config(app, settings)).run(sockets=[listener])
    log.info("stopped")


def uvicorn_config(app: Starlette, settings: KeysSettings) -> uvicorn.Config:
    """How the broker is served: HTTPS with the certificate of its folder."""
    folder = Path(settings.folder)
    return uvicorn.Config(
        app,
        ssl_certfile=str(folder / "tls.pem"),
        ssl_keyfile=str(folder / "tls.key"),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=30,
        limit_concurrency=512,
        h11_max_incomplete_event_size=16 << 10,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: unknown host, or the address is taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _policy_source(settings: KeysSettings) -> Callable[[], CedarPolicy]:
    if not settings.policy:
        shipped = release_policy()
        return lambda: shipped
    source = ReloadedFile(Path(settings.policy), release_policy)
    source.get()
    return source.get


def _reference_source(settings: KeysSettings) -> Callable[[], ReferenceValues]:
    if settings.reference_values:
        source = ReloadedFile(Path(settings.reference_values), ReferenceValues.from_toml)
        source.get()
        return source.get

    def none() -> ReferenceValues:
        raise ConfigError("no reference values are configured: every attestation is refused")

    return none


def _endorsements_source(settings: KeysSettings) -> Callable[[str], Endorsements | None]:
    if not settings.collateral:
        return lambda _scheme: None
    source = ReloadedFile(Path(settings.collateral), _json_object)
    source.get()
    return lambda scheme: parse_endorsements(scheme, source.get())


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return document


def _simulated_root(settings: KeysSettings) -> x509.Certificate | None:
    if not settings.simulated_root:
        return None
    try:
        return x509.load_pem_x509_certificate(Path(settings.simulated_root).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read a certificate from {settings.simulated_root}") from error


def _closing(state: BrokerState) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            state.close()

    return lifespan


async def _body(request: Request, limit: int) -> bytes:
    """The body, read only as far as the limit."""
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or int(declared) > limit:
        raise TooLarge(f"the body may have {limit} bytes")
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise TooLarge(f"the body may have {limit} bytes")
    return bytes(received)


def _path(request: Request) -> protocol.ResourcePath:
    version = request.query_params.get("version")
    try:
        if version is not None and not (version.isascii() and version.isdigit() and len(version) < 10):
            raise MalformedInput("version must be a number")
        return protocol.ResourcePath.parse(
            request.path_params["path"], None if version is None else int(version)
        )
    except MalformedInput as error:
        raise Refused("InvalidRequestPath", error.message) from error


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _error(variant: str, detail: str, *, status: int | None = None) -> Response:
    body = protocol.render(protocol.ErrorInformation.of(variant, detail))
    return Response(body, status or protocol.status_of(variant), media_type="application/json")


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _no_plugin(request: Request) -> Response:
    return _error("PluginNotFound", f"no plugin {request.path_params['plugin'][:40]!r}")

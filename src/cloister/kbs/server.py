"""The broker over HTTPS: routes, limits and status codes. What is decided, ``cloister.kbs.broker`` decides.

=========================================== ====== ==================== ==================================
path                                        method credential           answer
=========================================== ====== ==================== ==================================
/kbs/v0/auth                                POST   none                 challenge, session cookie
/kbs/v0/attest                              POST   session cookie       attestation result token
/kbs/v0/resource/{repository}/{type}/{tag}  GET    cookie or bearer     JWE; ``?version=n`` for an older one
/healthz                                    GET    none                 ``{"status": "ok"}``
/openapi.json                               GET    none                 this interface, OpenAPI 3.1
=========================================== ====== ==================== ==================================

Administration is in ``cloister.kbs.adminroutes``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ConfigError
from cloister.kbs import openapi, protocol
from cloister.kbs.administrators import open_administrators
from cloister.kbs.adminroutes import AdminRoutes
from cloister.kbs.appraiser import Appraiser
from cloister.kbs.broker import Broker
from cloister.kbs.gate import Gate
from cloister.kbs.logs import json_logger
from cloister.kbs.metrics import BrokerMetrics, MetricsPort
from cloister.kbs.refused import CannotNow, Refused
from cloister.kbs.requests import TooLarge, bearer, read_body, resource_path
from cloister.kbs.sessions import Sessions, SessionTable
from cloister.kbs.shared_sessions import SharedSessions
from cloister.kbs.state import BrokerState, open_state
from cloister.kbs.stored import policy_source, reference_values_source
from cloister.kbs.trust import endorsements_source, read_simulated_root
from cloister.kbs.trustee import AttestationPolicies
from cloister.kbs.wire import GatheringProtocol
from cloister.settings import KeysSettings

MAX_AUTH_BYTES = 16 << 10
MAX_ATTEST_BYTES = 1 << 20
QUICK_ATTEST_BYTES = 32 << 10
"""A message with one quote and its certificates is shorter; longer ones do not hold up the event loop."""
_GRACE_S = 5
_SWITCH_S = 0.0005
"""How long the event loop may make the journal's thread wait for the interpreter, and the other way round."""
_GC_ALLOCATIONS = 20_000
T = TypeVar("T")
_RESOURCE = "/kbs/v0/resource/{path:path}"


class ReleaseDesk(Protocol):
    """Who releases: a ``Broker``, or a key cache on its behalf. Each method blocks, and may raise Refused."""

    def challenge(self, body: bytes) -> tuple[str, protocol.Challenge]:
        """Step 1: a session id for the cookie, and the challenge."""
        ...

    def attest(self, session_id: str | None, body: bytes) -> protocol.TokenAnswer:
        """Step 2: appraise the evidence, issue a token."""
        ...

    def release(
        self, path: protocol.ResourcePath, *, session_id: str | None, token: str | None
    ) -> dict[str, str]:
        """Step 3: the resource as a JWE to the TEE's key."""
        ...


class ReleaseRoutes:
    """The three steps of the protocol over HTTP; each reads a bounded body and hands over to a thread."""

    administration = False
    """Whether there are routes of administration."""

    def __init__(self, desk: ReleaseDesk, log: FilteringBoundLogger) -> None:
        self._desk = desk
        self._log = log

    def table(self) -> list[Route]:
        """Every route; those of the protocol first, because most requests are theirs."""
        return [
            Route("/kbs/v0/auth", self.auth, methods=["POST"]),
            Route("/kbs/v0/attest", self.attest, methods=["POST"]),
            Route(_RESOURCE, self.get_resource, methods=["GET"]),
            *self.more(),
            Route("/kbs/v0/{plugin}", _no_plugin, methods=["GET", "POST", "DELETE"]),
            Route("/kbs/v0/{plugin}/{rest:path}", _no_plugin, methods=["GET", "POST", "DELETE"]),
            Route("/healthz", _health, methods=["GET"]),
            Route(openapi.PATH, self.document, methods=["GET"]),
        ]

    def more(self) -> list[Route]:
        """Routes besides the protocol's."""
        return []

    async def document(self, _request: Request) -> Response:
        """The interface of this server as an OpenAPI document."""
        body = openapi.render_document(administration=self.administration)
        return Response(body, media_type="application/json")

    async def auth(self, request: Request) -> Response:
        """Step 1 of the protocol."""
        body = await read_body(request, MAX_AUTH_BYTES)
        session_id, challenge = await self._challenge(body)
        response = Response(protocol.render(challenge), media_type="application/json")
        response.set_cookie(protocol.COOKIE, session_id, httponly=True, secure=True, samesite="strict")
        return response

    async def attest(self, request: Request) -> Response:
        """Step 2 of the protocol."""
        body = await read_body(request, MAX_ATTEST_BYTES)
        answer = await self._attest(request.cookies.get(protocol.COOKIE), body)
        return Response(protocol.render(answer), media_type="application/json")

    async def get_resource(self, request: Request) -> Response:
        """Step 3 of the protocol."""
        session_id = request.cookies.get(protocol.COOKIE)
        return JSONResponse(await self._release(resource_path(request), session_id, bearer(request)))

    async def _challenge(self, body: bytes) -> tuple[str, protocol.Challenge]:
        return await run_in_threadpool(self._desk.challenge, body)

    async def _attest(self, session_id: str | None, body: bytes) -> protocol.TokenAnswer:
        return await run_in_threadpool(self._desk.attest, session_id, body)

    async def _release(
        self, path: protocol.ResourcePath, session_id: str | None, token: str | None
    ) -> dict[str, str]:
        return await run_in_threadpool(self._desk.release, path, session_id=session_id, token=token)

    async def on_error(self, request: Request, error: Exception) -> Response:
        """Every failure as an error body of the protocol; of what is unexpected only the log learns more."""
        if isinstance(error, Refused):
            self._log.debug("request refused", variant=error.variant, detail=error.message)
            return _error(error.variant, error.message, status=503 if isinstance(error, CannotNow) else None)
        if isinstance(error, TooLarge):
            return _error("SerdeError", error.message, status=413)
        if isinstance(error, HTTPException):
            answer = _error("InvalidRequestPath", "no such path or method", status=error.status_code)
            if error.status_code == 405:
                answer.headers["allow"] = ", ".join(sorted(_allowed(request)))
            return answer
        reason = error.message if isinstance(error, CloisterError) else ""
        self._log.error("request failed", error=type(error).__name__, reason=reason)
        if isinstance(error, CloisterError):
            # Not 401, which would say that the key is refused: a cache that holds it would have to drop it.
            detail = "the broker cannot do this now; its log says why"
            return _error("PluginInternalError", detail, status=503)
        return _error("PluginInternalError", "internal error", status=500)


class Routes(ReleaseRoutes):
    """All HTTP handlers of one broker: the protocol, and administration.

    A step of the protocol takes a millisecond where it waits for nothing; handing it to a thread and back
    would take as long again. So the event loop does it, except for long evidence and for a broker whose
    database or KEK is elsewhere. For the audit log's disk nobody waits but the request itself.
    """

    administration = True

    def __init__(
        self, broker: Broker, log: FilteringBoundLogger, settings: KeysSettings, metrics: BrokerMetrics
    ) -> None:
        super().__init__(broker, log)
        self._broker = broker
        self._metrics = metrics
        self._admin_routes = AdminRoutes(broker, settings)

    def more(self) -> list[Route]:
        """Administration."""
        return self._admin_routes.table()

    async def on_error(self, request: Request, error: Exception) -> Response:
        """See ``ReleaseRoutes``."""
        if isinstance(error, Refused):
            self._metrics.refused(error.variant)
        return await super().on_error(request, error)

    async def _challenge(self, body: bytes) -> tuple[str, protocol.Challenge]:
        return self._broker.challenge(body)

    async def _attest(self, session_id: str | None, body: bytes) -> protocol.TokenAnswer:
        quick = self._broker.quick and len(body) <= QUICK_ATTEST_BYTES
        return await _begun(self._broker.begin_attest, session_id, body, quick=quick)

    async def _release(
        self, path: protocol.ResourcePath, session_id: str | None, token: str | None
    ) -> dict[str, str]:
        begin = functools.partial(self._broker.begin_release, path, session_id=session_id, token=token)
        return await _begun(begin, quick=self._broker.quick)


class QuietServer(uvicorn.Server):
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
    root = read_simulated_root(settings.simulated_root)
    state = open_state(settings, now)
    try:
        policy = policy_source(settings, state.database)
        reference_values = reference_values_source(settings, state.database)
        endorsements = endorsements_source(settings.collateral)
        administrators = open_administrators(settings, state.admin_key.public_key())
    except CloisterError:
        state.close()
        raise
    stored = AttestationPolicies(state.administration().documents)
    broker = Broker(
        state,
        _sessions(settings, state),
        policy=policy,
        appraiser=Appraiser(
            reference_values=reference_values,
            endorsements=endorsements,
            simulated_root=root,
            allow_sample=settings.allow_sample,
            refine=stored.refine,
        ),
        allow_sample=settings.allow_sample,
        rego_values=stored.reference_values,
        token_ttl_s=settings.token_ttl_s,
        administrators=administrators,
        log=log,
    )
    if root is not None:
        log.warning("a simulated root is trusted: keys may go to TEEs that protect nothing")
    metrics = BrokerMetrics(state.journal)
    routes = Routes(broker, log, settings, metrics)
    handlers: dict[Any, Any] = dict.fromkeys(
        (CloisterError, HTTPException, ClientDisconnect, Exception), routes.on_error
    )
    gate = Middleware(Gate, metrics=metrics, per_s=settings.rate_limit)
    app = Starlette(
        routes=routes.table(), exception_handlers=handlers, lifespan=_closing(state), middleware=[gate]
    )
    app.state.broker = broker
    app.state.metrics = metrics
    return app


def run_broker(settings: KeysSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the address cannot be bound, or a file cannot be used.
    """
    sys.setswitchinterval(_SWITCH_S)
    log = json_logger(settings.log_level)
    app = create_app(settings, log=log)
    listener = bind(settings.host, settings.port)
    # What the start has made stays: to look through it again and again would only hold up answers.
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 20)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    certificate = Path(settings.folder).absolute() / "tls.pem"
    log.info("listening", url=f"https://{shown}:{port}", certificate=str(certificate))
    with listener, _metrics_port(app, settings, log):
        QuietServer(uvicorn_config(app, settings)).run(sockets=[listener])
    log.info("stopped")


@contextlib.contextmanager
def _metrics_port(app: Starlette, settings: KeysSettings, log: FilteringBoundLogger) -> Iterator[None]:
    if not settings.metrics_port:
        yield
        return
    port = MetricsPort(app.state.metrics, settings.host, settings.metrics_port)
    log.info("metrics", port=port.port)
    try:
        yield
    finally:
        port.close()


def uvicorn_config(app: Starlette, settings: KeysSettings) -> uvicorn.Config:
    """How the broker is served: HTTPS with the certificate of its folder."""
    folder = Path(settings.folder)
    return https_config(app, folder / "tls.pem", folder / "tls.key", client_ca=settings.admin_ca)


def https_config(app: Starlette, certificate: Path, key: Path, *, client_ca: str = "") -> uvicorn.Config:
    """How a releaser of keys is served: HTTPS, small requests, nothing of them logged.

    Args:
        client_ca: PEM file of authorities; a client that shows a certificate must then show one of theirs.
    """
    return uvicorn.Config(
        app,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        ssl_ca_certs=client_ca or None,
        ssl_cert_reqs=ssl.CERT_OPTIONAL if client_ca else ssl.CERT_NONE,
        log_config=None,
        access_log=False,
        server_header=False,
        http=GatheringProtocol,
        proxy_headers=False,  # what says who asks is the connection, not a header that anybody can write
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=30,
        limit_concurrency=512,
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


def _sessions(settings: KeysSettings, state: BrokerState) -> Sessions:
    if state.database.local:
        return SessionTable(settings.session_ttl_s)
    return SharedSessions(state.database, state.session_key, settings.session_ttl_s)


def _closing(state: BrokerState) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        state.journal.attach(asyncio.get_running_loop().call_soon_threadsafe)
        try:
            yield
        finally:
            state.close()

    return lifespan


async def _begun(begin: Callable[..., Future[T]], *arguments: Any, quick: bool) -> T:
    waiting = begin(*arguments) if quick else await run_in_threadpool(begin, *arguments)
    return waiting.result() if waiting.done() else await asyncio.wrap_future(waiting)


def _error(variant: str, detail: str, *, status: int | None = None) -> Response:
    body = protocol.render(protocol.ErrorInformation.of(variant, detail))
    return Response(body, status or protocol.status_of(variant), media_type="application/json")


def _allowed(request: Request) -> set[str]:
    """The methods of every route that has this path (RFC 9110, 15.5.6)."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    return {
        method
        for route in routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _no_plugin(request: Request) -> Response:
    return _error("PluginNotFound", f"no plugin {request.path_params['plugin'][:40]!r}")

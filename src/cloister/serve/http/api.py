"""Routes: which request goes where, and what each way in may ask for."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Any

from cloister.errors import CloisterError, RequestTooLarge
from cloister.serve.http import paths
from cloister.serve.http.errors import (
    method_not_allowed,
    not_found,
    plain_http_refused,
    render_failure,
)
from cloister.serve.http.messages import Request, Response, error_response, json_response
from cloister.serve.http.predictions import Predictions
from cloister.serve.log import log
from cloister.serve.registry import Registry
from cloister.serve.stats import render_metrics

SEALED_OVERHEAD_BYTES = 1 << 17
"""How much longer than its content a sealed request may be: headers, framing, encapsulation."""

_PUBLIC = frozenset((paths.PING, paths.EVIDENCE, paths.GATEWAY))
_METRICS_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
Route = Callable[[Request], Awaitable[Response]]


class Way(enum.Enum):
    """How a request came in."""

    OPEN = "open"
    """Any port of a server in open mode."""
    TLS = "tls"
    """The attested key's port."""
    PLAIN = "plain"
    """The plain port of a protected server: only what needs no secrecy, or brings its own."""
    SEALED = "sealed"
    """Inside OHTTP."""


class Api:
    """Answers every request; raises nothing."""

    def __init__(self, registry: Registry, *, protected: bool, max_request_bytes: int) -> None:
        self._registry = registry
        self._max_request_bytes = max_request_bytes
        self._predictions = Predictions(registry, protected=protected)
        self._gateway: Route | None = None
        self._routes: dict[str, tuple[str, Route]] = {
            paths.PING: ("GET", self._ping),
            paths.MODELS: ("GET", self._models),
            paths.METRICS: ("GET", self._metrics),
        }

    def attach(self, *, evidence: Route, gateway: Route) -> None:
        """Add what only a protected server has."""
        self._routes[paths.EVIDENCE] = ("GET", evidence)
        self._gateway = gateway

    def refuse_early(self, way: Way, path: str) -> Response | None:
        """What to answer before any of the body is read; None if the request may go on."""
        if way is Way.PLAIN and path not in _PUBLIC:
            return plain_http_refused()
        return None

    def body_limit(self, path: str) -> int:
        """How long a body may be at this path."""
        if path == paths.GATEWAY:
            return self._max_request_bytes + SEALED_OVERHEAD_BYTES
        return self._max_request_bytes

    async def handle(self, request: Request, way: Way) -> Response:
        """The response to one whole request."""
        refusal = self.refuse_early(way, request.path)
        if refusal is not None:
            return refusal
        try:
            if request.path.startswith(paths.PREDICTIONS):
                return await self._predict(request)
            if request.path == paths.GATEWAY and self._gateway is not None and way is not Way.SEALED:
                return await self._gateway(request)
            return await self._other(request)
        except CloisterError as error:
            return render_failure(error)
        except Exception as error:  # noqa: BLE001 (a fault of ours must not end in a traceback with content)
            log.error("request failed", exception=type(error).__name__, way=way.value)
            return error_response(500, "InternalServerException", "Internal error")

    async def handle_sealed(self, request: Request) -> Response:
        """The response to a request that came inside OHTTP."""
        return await self.handle(request, Way.SEALED)

    async def _predict(self, request: Request) -> Response:
        name, _, version = request.path.removeprefix(paths.PREDICTIONS).partition("/")
        if not name or "/" in version:
            return not_found()
        if request.method not in ("POST", "PUT"):  # PUT is what `curl -T` sends, as TorchServe's guides say
            return method_not_allowed("POST", "PUT")
        if len(request.content) > self._max_request_bytes:
            raise RequestTooLarge(f"request body is over {self._max_request_bytes} bytes")
        return await self._predictions.answer(request, name, version or None)

    async def _other(self, request: Request) -> Response:
        route = self._routes.get(request.path)
        if route is None:
            return not_found()
        method, answer = route
        return await answer(request) if request.method == method else method_not_allowed(method)

    async def _ping(self, _: Request) -> Response:
        if self._registry.healthy:
            return json_response({"status": "Healthy"})
        return json_response({"status": "Unhealthy"}, 500)

    async def _models(self, _: Request) -> Response:
        listed: list[dict[str, Any]] = [
            {
                "modelName": model.name,
                "modelUrl": model.url,
                "modelVersion": model.version,
                "digest": model.digest,
                "signer": model.signer,
                "status": "READY" if model.supervisor.ready else "UNAVAILABLE",
            }
            for model in self._registry
        ]
        return json_response({"models": listed})

    async def _metrics(self, _: Request) -> Response:
        return Response(
            200, [_METRICS_TYPE], render_metrics(model.supervisor.stats for model in self._registry)
        )

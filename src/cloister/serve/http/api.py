"""Routes: which request goes where, and what each way in may ask for.

Every way in has a list of parts, asked in turn as TorchServe's chain of handlers is; each part knows its own
paths. A part may be behind a token.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from cloister.errors import CloisterError, ModelNotFound, RequestTooLarge
from cloister.serve.control import ModelControl
from cloister.serve.exposition import CONTENT_TYPE, Exposition
from cloister.serve.frames import Headers
from cloister.serve.http import paths
from cloister.serve.http.access import TokenAccess
from cloister.serve.http.actions import Asked, asked_at, asked_by_call
from cloister.serve.http.cors import Cors
from cloister.serve.http.door import Door
from cloister.serve.http.errors import method_not_allowed, not_found, render_failure
from cloister.serve.http.gateway import GatewayEndpoint
from cloister.serve.http.held import HeldBodies
from cloister.serve.http.inference import Inference, without_own
from cloister.serve.http.limits import body_limit, refuse_early
from cloister.serve.http.management import Management
from cloister.serve.http.messages import Request, Response, error_response, json_response
from cloister.serve.http.oip import OpenInference, in_protocols_form
from cloister.serve.http.openapi import describe_inference, describe_management, describe_metrics
from cloister.serve.http.predictions import Predictions
from cloister.serve.http.route import read_list, split_path
from cloister.serve.http.ways import Way
from cloister.serve.log import log
from cloister.serve.machine import Machine
from cloister.serve.refusals import MethodRefused
from cloister.serve.registry import Registry
from cloister.serve.sources import version_order
from cloister.serve.supervisor import Supervisor
from cloister.serve.torchserve.key_file import KeyFile, TokenKind
from cloister.settings import ServeSettings

if TYPE_CHECKING:
    from cloister.serve.access.control import AccessControl

Route = Callable[[Request], Awaitable[Response]]


class Part(Protocol):
    """Some of the routes of an API."""

    async def answer(self, request: Request, segments: list[str]) -> Response | None:
        """The response; None if the path is none of this part's."""


INFERENCE_WAYS = frozenset((Way.OPEN, Way.INFERENCE, Way.ALL, Way.TLS, Way.SEALED))
_DOCUMENTS = {Way.MANAGEMENT: describe_management, Way.METRICS: describe_metrics}


class Api:
    """Answers every request; raises nothing.

    Args:
        keys: TorchServe's tokens; None lets everybody in to what a port offers.
    """

    def __init__(
        self,
        registry: Registry,
        settings: ServeSettings,
        *,
        control: ModelControl | None = None,
        keys: KeyFile | None = None,
    ) -> None:
        protected = settings.mode == "protected"
        self.control = control or ModelControl(registry, None, settings)
        self.gateway: GatewayEndpoint | None = None
        """What opens sealed requests, once it is attached."""
        self.held = HeldBodies(settings.max_unfinished_bytes)
        """What bodies hold that have come in part."""
        self._registry = registry
        self._max_request_bytes = settings.max_request_bytes
        self._access = TokenAccess(keys, () if settings.token_auth else (TokenKind.INFERENCE,))
        self._door = Door(self._access, registry)
        self._protected = protected
        self._predictions = Predictions(registry, protected=protected)
        self._inference = Inference(self.control, self._predictions)
        self._management = Management(self.control, self._access, model_api=settings.model_api)
        self._metrics = MetricsPage(
            Exposition(
                lambda: [model.supervisor.current_stats() for model in registry],
                self._count_responses,
                loads=lambda: _worker_loads(registry),
                is_default=lambda stats: registry.find(stats.model).version == stats.version,
                machine=Machine() if settings.system_metrics and not protected else None,
                refused=lambda: {} if self.gateway is None else self.gateway.refused,
            )
        )
        self._evidence: Route | None = None
        self.cors = Cors(settings)
        """What pages of other origins may read; the transport says it."""
        self._by_class = [0] * 6
        self._oip = OpenInference(registry, self._predictions)
        asked: tuple[Part, ...] = (self._inference, self._oip)
        single = (*asked, ModelList(registry), self._metrics)
        self._parts: dict[Way, tuple[Part, ...]] = {
            Way.OPEN: single,
            Way.INFERENCE: asked,
            Way.MANAGEMENT: (self._management,),
            Way.METRICS: (self._metrics,),
            Way.ALL: (*asked, self._management, self._metrics),
            Way.TLS: single,
            Way.PLAIN: single,
            Way.SEALED: single,
        }

    def attach(self, *, evidence: Route, gateway: GatewayEndpoint) -> None:
        """Add what only a protected server has."""
        self._evidence = evidence
        self.gateway = gateway

    def use(self, control: AccessControl) -> None:
        """Ask ``control`` about every request from now on."""
        self._door.use(control)
        if control.takes_credentials:
            self._predictions.hides_credentials = True

    @property
    def access(self) -> AccessControl | None:
        """Who decides about requests; None where everybody may ask."""
        return self._door.control

    # What the hot path asks, and keeps as long as ``generation`` stays.

    @property
    def generation(self) -> int:
        """Changes whenever ``target`` or ``admit`` could come out differently, but for a token's expiry."""
        return self._registry.generation + self._door.generation

    @property
    def counts(self) -> bool:
        """Whether ``admit`` has to be asked for each request, and not once for several."""
        return self._door.counts

    def target(self, way: Way, method: str, path: str) -> Supervisor | None:
        """The model of a plain prediction; None for everything that ``handle`` has to answer."""
        if self.cors.is_on or way not in INFERENCE_WAYS:
            return None
        try:
            return self._inference.target(method, split_path(path))
        except ModelNotFound:
            return None

    def hot(self, way: Way, method: str, path: str, headers: Headers) -> tuple[Supervisor | None, Headers]:
        """As ``target``, for the Open Inference Protocol too; with the headers that the model gets."""
        supervisor = self.target(way, method, path)
        if supervisor is not None or self.cors.is_on or way not in INFERENCE_WAYS:
            return supervisor, self.model_headers(headers)
        try:
            return self._oip.hot(method, split_path(path), headers) or (None, headers)
        except ModelNotFound:
            return None, headers

    def admit(
        self, way: Way, supervisor: Supervisor, headers: Headers, certificate: bytes = b""
    ) -> Response | None:
        """The refusal of a prediction of this model with these headers; None if it may go on.

        Whoever is refused asks ``handle`` next, which notes the refusal and answers it.
        """
        asked = Asked("predict", supervisor.stats.model, supervisor.stats.version)
        try:
            self._door.require(
                TokenKind.INFERENCE, self._policy_way(way), asked, headers, certificate, note_refusal=False
            )
        except CloisterError as error:
            return render_failure(error)
        return None

    def admit_call(
        self, way: Way, method: str, model: str, version: str, headers: Headers, certificate: bytes = b""
    ) -> Response | None:
        """The refusal of a gRPC call, at the management port if ``way`` says so; None if it may go on."""
        kind = TokenKind.MANAGEMENT if way is Way.MANAGEMENT else TokenKind.INFERENCE
        try:
            asked = asked_by_call(method, model, version)
            self._door.require(kind, self._policy_way(way), asked, headers, certificate)
        except CloisterError as error:
            refusal = render_failure(error)
            self.trace_refusal(headers, refusal.status, time.monotonic())
            return refusal
        return None

    @property
    def asks_for_tokens(self) -> bool:
        """Whether TorchServe's tokens are asked for anywhere."""
        return self._access.is_on

    def model_headers(self, headers: Headers) -> Headers:
        """The headers that a model may see: not those by which the server itself speaks to handlers."""
        return self._predictions.model_headers(without_own(headers))

    def refuse_early(self, way: Way, path: str) -> Response | None:
        """What to answer before any of the body is read; None if the request may go on."""
        return refuse_early(way, path)

    def body_limit(self, path: str) -> int:
        """How long a body may be at this path."""
        return body_limit(path, self._max_request_bytes)

    async def handle(self, request: Request, way: Way) -> Response:
        """The response to one whole request."""
        started = time.monotonic()
        try:
            response = await self._answer(request, way)
        except CloisterError as error:
            response = render_failure(error)
        except Exception as error:  # noqa: BLE001 (a fault of ours must not end in a traceback with content)
            log.error("request failed", exception=type(error).__name__, way=way.value)
            response = error_response(500, "InternalServerException", "Internal error")
        if not any(name == b"x-request-id" for name, _ in response.headers):  # else its model has counted it
            self._by_class[min(response.status // 100, 5)] += 1
            if response.status >= 400:
                self.trace_refusal(request.headers, response.status, started)
        return response

    def trace_refusal(self, headers: Headers, status: int, started: float) -> None:
        """Note in the traces, where there are any, that a request came to no model.

        Args:
            started: ``time.monotonic()`` when it came.
        """
        if self._registry.tracer is not None:
            self._registry.tracer.note_refused(headers, status, started)

    async def handle_sealed(self, request: Request) -> Response:
        """The response to a request that came inside OHTTP."""
        return await self.handle(request, Way.SEALED)

    async def _answer(self, request: Request, way: Way) -> Response:
        refusal = self.refuse_early(way, request.path)
        if refusal is not None:
            return refusal
        if way in (Way.TLS, Way.PLAIN, Way.SEALED) and request.path in (paths.EVIDENCE, paths.GATEWAY):
            return await self._well_known(request, way)
        segments = split_path(request.path)
        if not segments or segments == ["api-description"]:
            return self._describe(request, way, segments)
        if len(request.content) > self._max_request_bytes:  # what was sealed has not met the limit yet
            raise RequestTooLarge(f"request body is over {self._max_request_bytes} bytes")
        if self._access.is_on and segments[0] == "token" and way in (Way.MANAGEMENT, Way.ALL):
            return self._management.renew_token(request)
        try:
            self._require(way, request, segments)
        except CloisterError as error:
            if not self._oip.claims(segments):
                raise
            return in_protocols_form(render_failure(error))
        for part in self._parts[way]:
            response = await part.answer(request, segments)
            if response is not None:
                return response
        return not_found()

    def _require(self, way: Way, request: Request, segments: list[str]) -> None:
        """Raise the refusal of a request that may not go on."""
        asked = asked_at(request.method, segments, metrics_port=way is Way.METRICS)
        if segments == ["invocations"] and asked is not None:
            asked = asked._replace(model=self._inference.invoked(request))
        token = _token_for(way, segments)
        self._door.require(token, self._policy_way(way), asked, request.headers, request.certificate)

    def _policy_way(self, way: Way) -> str:
        """The word for it in access policies."""
        if way is Way.SEALED:
            return "sealed"
        return "tls" if self._protected else "open"

    async def _well_known(self, request: Request, way: Way) -> Response:
        if request.path == paths.GATEWAY:
            if self.gateway is None or way is Way.SEALED:
                return not_found()
            return await self.gateway.answer(request)
        if self._evidence is None:
            return not_found()
        return await self._evidence(request) if request.method == "GET" else method_not_allowed("GET")

    def _describe(self, request: Request, way: Way, segments: list[str]) -> Response:
        if segments or request.method == "OPTIONS":
            return json_response(_DOCUMENTS.get(way, describe_inference)())
        raise MethodRefused("OPTIONS")

    def _count_responses(self) -> Sequence[int]:
        totals = [own + gone for own, gone in zip(self._by_class, self.control.gone, strict=True)]
        for model in self._registry:
            totals = [a + b for a, b in zip(totals, model.supervisor.stats.by_class, strict=True)]
        return totals


class ModelList:
    """``GET /models`` of a server with one port: what it serves, and what protects each."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def answer(self, request: Request, segments: list[str]) -> Response | None:
        if segments != ["models"]:
            return None
        if request.method != "GET":
            return method_not_allowed("GET")
        listed: list[dict[str, Any]] = [
            {
                "modelName": model.name,
                "modelUrl": model.url,
                "modelVersion": model.version,
                "digest": model.digest,
                "signer": model.signer,
                "sandbox": model.supervisor.sandbox,
                "status": "READY" if model.supervisor.ready else "UNAVAILABLE",
            }
            for model in sorted(self._registry, key=lambda item: (item.name, version_order(item.version)))
        ]
        return json_response({"models": listed})


class MetricsPage:
    """``GET /metrics``, with ``name[]`` for some of them."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    async def answer(self, request: Request, segments: list[str]) -> Response | None:
        if segments[0] != "metrics":
            return None
        names = frozenset(read_list(request.query, "name[]"))
        return Response(200, [(b"content-type", CONTENT_TYPE)], self._exposition.render(names))


def _worker_loads(registry: Registry) -> Iterator[tuple[str, float]]:
    for model in registry:
        for worker in model.supervisor.workers():
            yield f"W-{worker.id}-{model.name}_{model.version}", worker.load_s


def _token_for(way: Way, segments: list[str]) -> TokenKind | None:
    """Which token a path needs; TorchServe asks before it looks whether there is such a path."""
    if way in (Way.METRICS, Way.PLAIN) or (way is not Way.MANAGEMENT and segments[0] == "metrics"):
        return None
    if way is Way.MANAGEMENT:
        return TokenKind.MANAGEMENT
    match segments:
        case ["models", _, "invoke"]:
            return TokenKind.INFERENCE
        case ["models" | "workflows", *_] if way is Way.ALL:
            return TokenKind.MANAGEMENT
    return TokenKind.INFERENCE

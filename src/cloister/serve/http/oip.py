"""Open Inference Protocol v2 over HTTP, and TorchServe's ``/v2/models/{m}/infer`` and ``/explain``.

A body that is JSON, or that has the header ``Inference-Header-Content-Length``, is a request of the protocol
and gets tensors back. Forms and other media types are TorchServe's use of the same route: the handler gets
them as at ``/predictions``, and its answer goes out as it is. Errors are ``{"error": text}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

import cloister
from cloister.errors import CloisterError
from cloister.serve.frames import Headers
from cloister.serve.http.errors import method_not_allowed, not_found, render_failure
from cloister.serve.http.messages import JSON, Request, Response, error_response, json_response
from cloister.serve.http.predictions import Predictions
from cloister.serve.oip.marks import HEADER_LENGTH, mark
from cloister.serve.registry import Model, Registry
from cloister.serve.supervisor import Supervisor

SERVER_NAME = "cloister"
EXTENSIONS = ("binary_tensor_data",)
SETTINGS_KEY = "openInference"
"""Where an archive's YAML may declare ``platform``, ``inputs`` and ``outputs``."""

_SET_HERE = frozenset((b"explain", b"url_path", b"describe"))
_JSON_TYPES = (b"application/json", b"application/vnd.", b"text/json")


class _Message(msgspec.Struct):
    message: str


class OpenInference:
    """The routes under ``/v2``; ``answer`` gives None for any other path."""

    def __init__(self, registry: Registry, predictions: Predictions) -> None:
        self._registry = registry
        self._predictions = predictions

    def claims(self, segments: list[str]) -> bool:
        """Whether a path is one of these, whatever it then says."""
        return segments[:1] == ["v2"]

    def hot(self, method: str, segments: list[str], headers: Headers) -> tuple[Supervisor, Headers] | None:
        """The model of an inference that needs nothing but its body, and the headers that it gets.

        Raises:
            ModelNotFound: there is no such model.
        """
        match segments:
            case ["v2", "models", name, "infer"]:
                version = None
            case ["v2", "models", name, "versions", version, "infer"]:
                pass
            case _:
                return None
        request = Request(method, "", b"", headers, b"")
        if method != "POST" or not speaks_protocol(request) or _is_compressed(request):
            return None
        model = self._registry.find(name, version)
        return model.supervisor, self._predictions.model_headers(_model_headers(request, model))

    async def answer(self, request: Request, segments: list[str]) -> Response | None:
        """The response, if the path is one of this protocol."""
        if not self.claims(segments):
            return None
        try:
            response = await self._route(request, segments[1:])
        except CloisterError as error:
            response = render_failure(error)
        return in_protocols_form(response) if response.status >= 400 else response

    async def _route(self, request: Request, segments: list[str]) -> Response:
        match segments:
            case []:
                return _get(request, server_metadata())
            case ["health", "live"]:
                return _get(request, {"live": True})
            case ["health", "ready"]:
                return self._ready(request, {}, self._registry.healthy)
            case ["models", name, "versions", version, *rest]:
                return await self._model(request, name, version, rest)
            case ["models", name, *rest]:
                return await self._model(request, name, None, rest)
        return not_found()

    async def _model(self, request: Request, name: str, version: str | None, rest: list[str]) -> Response:
        match rest:
            case []:
                return _get(request, model_metadata(self._registry, self._registry.find(name, version)))
            case ["ready"]:
                model = self._registry.find(name, version)
                return self._ready(request, {"name": model.name}, model.supervisor.ready)
            case ["infer" | "explain" as what]:
                # TorchServe's clients may write the name as in its version 1: model:infer.
                return await self._infer(request, name.partition(":")[0], version, explain=what == "explain")
        return not_found()

    async def _infer(self, request: Request, name: str, version: str | None, *, explain: bool) -> Response:
        if request.method not in ("POST", "PUT"):
            return method_not_allowed("POST")
        if _is_compressed(request):
            return error_response(415, "BadRequestException", "a compressed body is not supported")
        model = self._registry.find(name, version)
        headers = _model_headers(request, model, explain=explain)
        asked = Request("POST", request.path, b"", headers, request.content)
        return await self._predictions.answer(asked, name, version, alone=explain)

    def _ready(self, request: Request, document: dict[str, Any], ready: bool) -> Response:
        if request.method not in ("GET", "HEAD"):
            return method_not_allowed("GET")
        # Orchestrators read the status alone.
        return json_response({**document, "ready": ready}, 200 if ready else 503)


def speaks_protocol(request: Request) -> bool:
    """Whether an inference request is one of the protocol, and not TorchServe's use of its route."""
    if request.header(HEADER_LENGTH.encode()):
        return True
    kind = request.header(b"content-type").strip().lower()
    if kind.startswith(_JSON_TYPES):
        return True
    # TorchServe's test clients send a file without saying what it is.
    return kind in (b"", b"application/octet-stream") and request.content[:64].lstrip()[:1] == b"{"


def _model_headers(request: Request, model: Model, *, explain: bool = False) -> Headers:
    headers: Headers = [pair for pair in request.headers if pair[0] not in _SET_HERE]
    headers.append((b"explain", b"True" if explain else b"False"))
    return headers + mark(model.name, model.version) if speaks_protocol(request) else headers


def _is_compressed(request: Request) -> bool:
    return request.header(b"content-encoding").strip().lower() not in (b"", b"identity")


def server_metadata() -> dict[str, Any]:
    """What ``GET /v2`` says."""
    return {"name": SERVER_NAME, "version": cloister.__version__, "extensions": list(EXTENSIONS)}


def model_metadata(registry: Registry, model: Model) -> dict[str, Any]:
    """What ``GET /v2/models/{m}`` says: the engine's own tensors, or as much as the archive declares."""
    declared = model.source.settings.get(SETTINGS_KEY)
    declared = declared if isinstance(declared, Mapping) else {}
    platform = declared.get("platform", "")
    found: dict[str, Any] = {
        "name": model.name,
        "versions": [item.version for item in registry.versions(model.name)],
        "platform": platform if isinstance(platform, str) else "",
        "inputs": _tensors(declared.get("inputs")),
        "outputs": _tensors(declared.get("outputs")),
    }
    schema, direct = model.supervisor.schema, model.supervisor.direct
    if schema is not None:
        found.update(msgspec.to_builtins(schema))
    if direct is not None and not found["platform"]:
        found["platform"] = direct.engine.kind
    return found


def _tensors(listed: Any) -> list[dict[str, Any]]:
    """Declared tensors; what is not in the protocol's form is left out."""
    found: list[dict[str, Any]] = []
    for item in listed if isinstance(listed, list) else []:
        if not isinstance(item, Mapping):
            continue
        name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
        if (
            isinstance(name, str)
            and isinstance(datatype, str)
            and isinstance(shape, list)
            and all(type(size) is int and -1 <= size < 1 << 63 for size in shape)
        ):
            found.append({"name": name, "datatype": datatype, "shape": shape})
    return found


def _get(request: Request, document: dict[str, Any]) -> Response:
    return json_response(document) if request.method in ("GET", "HEAD") else method_not_allowed("GET")


def in_protocols_form(response: Response) -> Response:
    """An error of the server as ``{"error"}``; what a handler made of its own stays as it is."""
    if not isinstance(response.content, bytes):
        return response
    try:
        found = msgspec.json.decode(response.content, type=_Message)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return response
    headers = [pair for pair in response.headers if pair[0] != b"content-type"]
    return Response(response.status, [JSON, *headers], msgspec.json.encode({"error": found.message}))

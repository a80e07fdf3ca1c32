"""TorchServe's management API over HTTP.

Source: pytorch/serve 0.12, ManagementRequestHandler.java; docs/management_api.md.
"""

from __future__ import annotations

import msgspec

from cloister.errors import MalformedInput
from cloister.serve.control import ModelControl, Outcome
from cloister.serve.http.access import TokenAccess
from cloister.serve.http.messages import JSON, Request, Response, json_response
from cloister.serve.http.openapi import describe_model_management
from cloister.serve.http.predictions import render_answer
from cloister.serve.http.route import is_true, read_query
from cloister.serve.model_config import whole_parameter
from cloister.serve.refusals import BadRequest, MethodRefused, NotSupported, NoWorker, ResourceNotFound


class Management:
    """The routes of the management API; ``answer`` gives None for a path that is none of them.

    Args:
        model_api: whether models can be registered and unregistered.
    """

    def __init__(self, control: ModelControl, access: TokenAccess, *, model_api: bool) -> None:
        self._control = control
        self._access = access
        self._model_api = model_api

    def renew_token(self, request: Request) -> Response:
        """``GET /token?type=``: answered before any other check, by the API's own token."""
        self._access.renew(read_query(request.query).get("type", ""), request.headers)
        return Response(200, [JSON], b"\n")

    async def answer(self, request: Request, segments: list[str]) -> Response | None:
        """The response, if the path is one of this API."""
        match segments:
            case ["models"]:
                return await self._models(request)
            case ["models", name]:
                return await self._model(request, name, None)
            case ["models", name, version]:
                return await self._model(request, name, version)
            case ["models", name, version, "set-default"]:
                if request.method != "PUT":
                    return await self._model(request, name, None)
                return _render(self._control.set_default(name, version))
            case [_, _, _, "set-default"]:
                raise ResourceNotFound
            case ["v1", "models", last]:
                return self._ready(request, last.partition(":")[0])
            case ["workflows", *rest] if len(rest) <= 2:
                raise NotSupported("workflows are not supported")
        return None

    async def _models(self, request: Request) -> Response:
        if request.method == "GET":
            query = read_query(request.query)
            limit, token = whole_parameter(query, "limit", 100), whole_parameter(query, "next_page_token", 0)
            return json_response(self._control.list_models(limit, token))
        if request.method == "POST" and self._model_api:
            parameters = _parameters(request)
            synchronous = is_true(parameters.get("synchronous", "true"))
            return _render(await self._control.register(parameters, synchronous=synchronous))
        raise MethodRefused(*(("GET", "POST") if self._model_api else ("GET",)))

    async def _model(self, request: Request, name: str, version: str | None) -> Response:
        if request.method == "GET":
            return await self._describe(request, name, version)
        if request.method == "PUT":
            query = read_query(request.query)
            if {"IP", "PORT"} & set(query):  # how the article's backends registered themselves, unproven
                raise BadRequest(
                    "A backend is not registered by its address: run `cloister worker --frontend https://...`"
                    " there, which joins over mutually attested TLS."
                )
            synchronous = is_true(query.get("synchronous"))
            return _render(await self._control.scale(name, version, query, synchronous=synchronous))
        if request.method == "DELETE" and self._model_api:
            return _render(await self._control.unregister(name, version))
        if request.method == "OPTIONS":
            return json_response(describe_model_management(self._control.find(name, version).name))
        raise MethodRefused("GET", "PUT", *(("DELETE",) if self._model_api else ()), "OPTIONS")

    async def _describe(self, request: Request, name: str, version: str | None) -> Response:
        facts = self._control.describe(name, version)
        if version == "all" or not is_true(read_query(request.query).get("customized")):
            return json_response(facts)
        supervisor = self._control.find(name, version).supervisor
        if not supervisor.config.max_workers:
            raise NoWorker(
                f'Model "{name}" has no worker to serve describe request. '
                "Please use scale workers API to add workers."
            )
        answer = render_answer(await supervisor.describe())
        if answer.status != 200:
            return answer
        content = await answer.whole()
        if content and facts:
            facts[0]["customizedMetadata"] = customized_metadata(content)
        return json_response(facts)

    def _ready(self, request: Request, name: str) -> Response:
        """KServe's V1 readiness of one model."""
        if request.method != "GET":
            raise MethodRefused("GET")
        return json_response({"name": name, "ready": self._control.find(name, None).supervisor.ready})


def _render(outcome: Outcome) -> Response:
    return json_response({"status": outcome.message}, outcome.status)


def _parameters(request: Request) -> dict[str, str]:
    """Of the query, or of a JSON body where there is one, as TorchServe takes it."""
    kind = request.header(b"content-type").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        return read_query(request.query)
    try:
        # Gson takes single quotes for double ones, and TorchServe's own guide writes them so.
        raw = request.content if b'"' in request.content else request.content.replace(b"'", b'"')
        document = msgspec.json.decode(raw or b"{}", type=dict[str, str | int | float | bool | None])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("the body is not one JSON object of plain values") from error
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in document.items()
        if value is not None
    }


def customized_metadata(content: bytes) -> object:
    """What a handler says of itself; TorchServe shows an empty object for what is not one."""
    try:
        return msgspec.json.decode(content, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MalformedInput):
        return {}

"""TorchServe's inference API: every route that ends in a prediction or an explanation.

Source: pytorch/serve 0.12, InferenceRequestHandler.java.
"""

from __future__ import annotations

from cloister.errors import MalformedInput
from cloister.serve.control import ModelControl
from cloister.serve.forms import parse_fields
from cloister.serve.frames import Headers
from cloister.serve.http.errors import not_found
from cloister.serve.http.messages import Request, Response, json_response
from cloister.serve.http.openapi import describe_model
from cloister.serve.http.predictions import Predictions
from cloister.serve.http.route import read_query
from cloister.serve.refusals import BadRequest, MethodRefused, NotSupported, ResourceNotFound
from cloister.serve.supervisor import Supervisor

_EXPLAIN = (b"explain", b"True")
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"))
"""Each of them is a prediction for TorchServe."""
_SET_HERE = frozenset((b"explain", b"url_path", b"describe"))
"""Headers by which the frontend speaks to handlers: a caller's own are taken away."""


class Inference:
    """The routes of the inference API; ``answer`` gives None for a path that is none of them."""

    def __init__(self, control: ModelControl, predictions: Predictions) -> None:
        self._control = control
        self._predictions = predictions

    def target(self, method: str, segments: list[str]) -> Supervisor | None:
        """The model of a plain prediction, which needs nothing but its body and headers; None otherwise."""
        if method not in ("POST", "PUT"):
            return None
        match segments:
            case ["predictions", name]:
                return self._control.find(name, None).supervisor
            case ["predictions", name, version]:
                return self._control.find(name, version).supervisor
            case ["v1", "models", last] if last.endswith(":predict"):
                return self._control.find(last.removesuffix(":predict"), None).supervisor
            case ["models", name, "invoke"]:
                return self._control.find(name, None).supervisor
        return None

    async def answer(self, request: Request, segments: list[str]) -> Response | None:
        """The response, if the path is one of this API."""
        match segments:
            case ["ping", *_]:
                return self._ping()
            case ["predictions" | "explanations" as what, name, *rest]:
                return await self._predict(request, name, rest, explain=what == "explanations")
            case ["predictions" | "explanations"]:
                return not_found()
            case ["invocations"]:
                return await self._invoke(request)
            case ["models", name, "invoke"]:
                return await self._ask(request, name, None)
            case [name, "predict"] if name != "models":
                return await self._ask(request, name, None)
            case [name, version, "predict"] if name not in ("models", "v1", "v2"):
                return await self._ask(request, name, version)
            case ["v1", "models", last] if ":predict" in last or ":explain" in last:
                name = last.partition(":")[0]
                return await self._ask(request, name, None, explain=":predict" not in last)
            case ["wfpredict", _, *_]:
                raise NotSupported("workflows are not supported")
        return None

    def _ping(self) -> Response:
        if self._control.registry.healthy:
            return json_response({"status": "Healthy"})
        return json_response({"status": "Unhealthy"}, 500)

    async def _predict(self, request: Request, name: str, rest: list[str], *, explain: bool) -> Response:
        version = rest[0] if rest else None
        url_path = "/".join(rest[1:])
        return await self._ask(request, name, version, explain=explain, url_path=url_path)

    def invoked(self, request: Request) -> str:
        """The model that ``/invocations`` means.

        Raises:
            BadRequest: it is not clear which.
        """
        name = read_query(request.query).get("model_name") or self._named_in_form(request)
        if not name:
            startup = self._control.startup_models
            if len(startup) != 1:
                raise BadRequest("Parameter model_name is required.")
            (name,) = startup
        return name

    async def _invoke(self, request: Request) -> Response:
        return await self._ask(request, self.invoked(request), None)

    def _named_in_form(self, request: Request) -> str:
        kind = request.header(b"content-type").partition(b";")[0].strip().lower()
        if kind not in (b"multipart/form-data", b"application/x-www-form-urlencoded"):
            return ""
        try:
            fields = parse_fields(
                memoryview(request.content),
                content_type=request.header(b"content-type").decode("latin-1"),
                query=b"",
            )
        except MalformedInput as error:
            raise BadRequest(error.message) from error
        value = fields.get("model_name", b"")
        return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)

    async def _ask(
        self,
        request: Request,
        name: str,
        version: str | None,
        *,
        explain: bool = False,
        url_path: str = "",
    ) -> Response:
        """The model's answer."""
        if request.method == "OPTIONS":
            return json_response(describe_model(self._control.find(name, version).name))
        if request.method not in METHODS:
            raise MethodRefused(*sorted(METHODS), "OPTIONS")
        if not name:
            raise ResourceNotFound
        headers = list(without_own(request.headers))
        if explain:
            headers.append(_EXPLAIN)
        if url_path:
            headers.append((b"url_path", url_path.encode()))
        asked = Request(request.method, request.path, request.query, headers, request.content)
        return await self._predictions.answer(asked, name, version, alone=explain)


def without_own(headers: Headers) -> Headers:
    """``headers`` without what only the server may say; the same list where there is nothing to leave out."""
    if any(name in _SET_HERE for name, _ in headers):
        return [pair for pair in headers if pair[0] not in _SET_HERE]
    return headers

"""``GRPCInferenceService`` of the Open Inference Protocol v2."""

from __future__ import annotations

from typing import Any

from cloister.errors import MalformedInput, ModelFailed
from cloister.serve.frames import Headers
from cloister.serve.grpc.calls import CallFailed, Context, deadline_of, priority_of
from cloister.serve.grpc.convert import to_http, to_message
from cloister.serve.grpc.messages import message
from cloister.serve.grpc.status import read_failure
from cloister.serve.http.oip import model_metadata, server_metadata
from cloister.serve.http.predictions import next_request_id, render_answer
from cloister.serve.jobs import Answer
from cloister.serve.oip.marks import HEADER_LENGTH, mark
from cloister.serve.registry import Model, Registry

_HEADER_LENGTH = HEADER_LENGTH.encode()
_HEADERS: Headers = [(b"content-type", b"application/octet-stream"), (b"explain", b"False")]


class OpenInferenceService:
    """Health, metadata and inference of the registry's models."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ServerLive(self, _: Any, __: Context) -> Any:  # noqa: N802 (the service's own names)
        """The server answers."""
        return message("inference.ServerLiveResponse")(live=True)

    async def ServerReady(self, _: Any, __: Context) -> Any:  # noqa: N802
        """Whether every model has a worker."""
        return message("inference.ServerReadyResponse")(ready=self._registry.healthy)

    async def ModelReady(self, request: Any, _: Context) -> Any:  # noqa: N802
        """Whether the model has a worker."""
        model = self._find(request.name, request.version)
        return message("inference.ModelReadyResponse")(ready=model.supervisor.ready)

    async def ServerMetadata(self, _: Any, __: Context) -> Any:  # noqa: N802
        """Name and version of the server."""
        return message("inference.ServerMetadataResponse")(**server_metadata())

    async def ModelMetadata(self, request: Any, _: Context) -> Any:  # noqa: N802
        """The model's versions, and its tensors as far as its archive declares them."""
        model = self._find(request.name, request.version)
        return message("inference.ModelMetadataResponse")(**model_metadata(self._registry, model))

    async def ModelInfer(self, request: Any, context: Context) -> Any:  # noqa: N802
        """One inference."""
        model = self._find(request.model_name, request.model_version)
        body, header_bytes = to_http(request)
        marks = mark(model.name, model.version)
        answer = await model.supervisor.ask(
            [*_HEADERS, (_HEADER_LENGTH, b"%d" % header_bytes), *marks],
            b"",
            body,
            deadline=deadline_of(context),
            priority=priority_of(context),
            request_id=next_request_id(),
        )
        response = render_answer(answer)
        if response.status >= 400:
            failure = read_failure(response)
            raise CallFailed(failure.code, failure.message)
        return to_message(answer.body, _header_bytes(answer), typed=not request.raw_input_contents)

    def _find(self, name: str, version: str) -> Model:
        if not name:
            raise MalformedInput("the name of the model is missing")
        return self._registry.find(name, version or None)


def _header_bytes(answer: Answer) -> int:
    """Length of an answer's JSON part."""
    for name, value in answer.headers:
        if name == _HEADER_LENGTH:
            if not value.isdigit() or len(value) > 15:
                raise ModelFailed("the handler set a length that is none")
            return int(value)
    return len(answer.body)

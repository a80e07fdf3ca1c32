"""TorchServe's ``InferenceAPIsService``.

Source: pytorch/serve 0.12, InferenceImpl.java and GRPCJob.java (codes, words, the order of checks).
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from cloister.errors import CloisterError, ModelNotFound
from cloister.serve.frames import Headers
from cloister.serve.grpc.calls import CallFailed, Context, deadline_of, priority_of
from cloister.serve.grpc.fields import encode_fields
from cloister.serve.grpc.messages import INFERENCE, message
from cloister.serve.grpc.status import Failure, failure_of, read_failure
from cloister.serve.http.predictions import next_request_id, render_answer
from cloister.serve.jobs import Answer
from cloister.serve.registry import Registry

SEQUENCE_ID = b"ts_request_sequence_id"
SEQUENCE_START = "ts_request_sequence_start"
SEQUENCE_END = "ts_request_sequence_end"

_PredictionResponse = message(f"{INFERENCE}.PredictionResponse")
_Health = message(f"{INFERENCE}.TorchServeHealthResponse")
_Status = message("google.rpc.Status")
_ErrorInfo = message("google.rpc.ErrorInfo")


class InferenceService:
    """Health and predictions from the registry's models."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Ping(self, _: Any, __: Context) -> Any:  # noqa: N802 (the service's own names)
        """Whether every model has a worker."""
        state = "Healthy" if self._registry.healthy else "Unhealthy"
        return _Health(health=f'{{\n  "status": "{state}"\n}}')

    async def Predictions(self, request: Any, context: Context) -> Any:  # noqa: N802
        """One answer."""
        headers, body = encode_fields(request.input)
        supervisor = self._find(request).supervisor
        answer = await supervisor.ask(
            headers,
            b"",
            body,
            deadline=deadline_of(context),
            priority=priority_of(context),
            request_id=next_request_id(),
        )
        return _PredictionResponse(prediction=_content(answer))

    async def StreamPredictions(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802
        """The parts of an answer as the handler sends them."""
        headers, body = encode_fields(request.input)
        async for content in self._parts(request, headers, body, context):
            yield _PredictionResponse(prediction=content)

    async def StreamPredictions2(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        """Answers to the requests of a sequence, in their order; a failure ends its request only."""
        async for request in requests:
            try:
                sequence_id, extra = _sequence(request)
                headers, body = encode_fields(request.input)
                headers = [*headers, *extra]
                async for content in self._parts(request, headers, body, context):
                    yield _PredictionResponse(prediction=content, sequence_id=sequence_id)
            except CloisterError as error:
                yield _failed(error, request.sequence_id)

    async def _parts(
        self, request: Any, headers: Headers, body: bytes, context: Context
    ) -> AsyncIterator[bytes]:
        parts = self._find(request).supervisor.stream(
            headers,
            b"",
            body,
            deadline=deadline_of(context),
            priority=priority_of(context),
            request_id=next_request_id(),
        )
        async for part in parts:
            yield _content(part)

    def _find(self, request: Any) -> Any:
        if not request.model_name:
            raise CallFailed(
                grpc.StatusCode.INTERNAL, "Parameter model_name is required.\nBadRequestException.()"
            )
        try:
            return self._registry.find(request.model_name, request.model_version or None)
        except ModelNotFound as error:
            # TorchServe says INTERNAL here, and NOT_FOUND in its other services.
            raise CallFailed(grpc.StatusCode.INTERNAL, failure_of(error).details) from error


def _content(answer: Answer) -> bytes:
    """What the handler answered.

    Raises:
        CallFailed: it answered with an error.
    """
    response = render_answer(answer)
    if response.status >= 400:
        failure = read_failure(response)
        raise CallFailed(failure.code, failure.details)
    assert isinstance(response.content, bytes)
    return response.content


def _sequence(request: Any) -> tuple[str, Headers]:
    """The request's sequence, and the headers that tell the handler of it."""
    sequence_id = request.sequence_id
    extra: Headers = []
    if _is_true(request.input, SEQUENCE_START):
        extra.append((SEQUENCE_START.encode(), b"true"))
    if _is_true(request.input, SEQUENCE_END):
        extra.append((SEQUENCE_END.encode(), b"true"))
    if not sequence_id:
        if not extra or extra[0][0] != SEQUENCE_START.encode():
            raise CallFailed(
                grpc.StatusCode.INTERNAL, "Parameter sequenceId is required.\nBadRequestException.()"
            )
        sequence_id = f"ts-seq-{uuid.uuid4()}"
    return sequence_id, [*extra, (SEQUENCE_ID, sequence_id.encode())]


def _is_true(fields: Mapping[str, bytes], name: str) -> bool:
    return name in fields and fields[name].lower() == b"true"


def _failed(error: CloisterError, sequence_id: str) -> Any:
    """A failure as a message, so that the stream can go on."""
    if isinstance(error, CallFailed):
        code, (text, _, reason) = error.code, error.message.partition("\n")
    else:
        failure: Failure = failure_of(error)
        code, text, reason = failure.code, failure.message, failure.java_name
    number: int = code.value[0]
    status = _Status(code=number, message=text)
    status.details.add().Pack(_ErrorInfo(reason=reason))
    return _PredictionResponse(sequence_id=sequence_id, status=status)

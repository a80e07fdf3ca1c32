"""``POST /predictions/{model}[/{version}]``: from a request to a worker's answer.

An answer comes from a guest: its status and headers are checked before they reach a transport.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import AsyncIterator
from functools import lru_cache

from cloister.errors import CloisterError, ModelFailed
from cloister.serve.frames import Headers
from cloister.serve.http.errors import render_failure
from cloister.serve.http.heads import find_priority
from cloister.serve.http.messages import Request, Response, error_response
from cloister.serve.jobs import Answer
from cloister.serve.process import describe_fault
from cloister.serve.registry import Registry
from cloister.serve.supervisor import Supervisor

# RFC 9110, section 5.6.2 (token) and 5.5 (values); a handler may not speak for the transport.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]{1,256}")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]{0,8192}")
_TRANSPORT_HEADERS = frozenset(
    (
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_CREDENTIALS = frozenset((b"authorization", b"cookie", b"proxy-authorization", b"x-api-key"))
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_768
BAD_REQUEST = "BadRequestException"
SERVER_FAULT = "InternalServerException"

_run = secrets.token_hex(4)
_requests = itertools.count(1)


class Predictions:
    """Answers prediction requests from the registry's models, for callers that are coroutines."""

    def __init__(self, registry: Registry, *, protected: bool) -> None:
        self._registry = registry
        self.hides_credentials = protected
        """Whether models do not see what lets their callers in."""

    def model_headers(self, headers: Headers) -> Headers:
        """The headers that a model may see: what lets a caller in is no business of a protected one."""
        if self.hides_credentials:
            return [pair for pair in headers if pair[0] not in _CREDENTIALS]
        return headers

    async def answer(
        self, request: Request, name: str, version: str | None, *, alone: bool = False
    ) -> Response:
        """The model's answer, or an error in TorchServe's form.

        Args:
            alone: in no batch with others. For all that is not a prediction: handlers look at the first
                request of a batch to see what is asked of it.
        """
        try:
            supervisor = self._registry.find(name, version).supervisor
        except CloisterError as error:
            return render_failure(error)
        request_id = next_request_id()
        try:
            response = await self._ask(supervisor, request, request_id, alone=alone)
        except CloisterError as error:
            response = render_failure(error)
        response.headers = [*response.headers, (b"x-request-id", request_id.encode())]
        return response

    async def _ask(
        self, supervisor: Supervisor, request: Request, request_id: str, *, alone: bool
    ) -> Response:
        parts = supervisor.stream(
            self.model_headers(request.headers),
            request.query,
            request.content,
            priority=find_priority(request.headers),
            request_id=request_id,
            alone=alone,
        )
        first = await anext(parts)
        response = render_answer(first)
        if first.more:
            response.content = _bodies(first, parts)
        return response


async def _bodies(first: Answer, rest: AsyncIterator[Answer]) -> AsyncIterator[bytes]:
    """The bodies of a streamed answer.

    Raises:
        ModelFailed: it broke off; the status has gone out already, so the transport has to break off too.
    """
    yield bytes(first.body)
    async for part in rest:
        if part.fault is not None:
            raise ModelFailed(describe_fault(part.fault, show_text=False))
        yield bytes(part.body)


def next_request_id() -> str:
    """A new request id in the form of a UUID: a random number of this run, and a counter."""
    return f"{_run}-0000-4000-8000-{next(_requests):012x}"


def render_answer(answer: Answer, *, show_text: bool = True) -> Response:
    """A worker's answer, or the first part of one, as a response.

    Args:
        show_text: pass on the text of the handler's exception. A worker sends one only where the request ran
            alone, so that it cannot hold what another caller sent.
    """
    fault = answer.fault
    if fault is not None:
        status = answer.status if answer.status in (400, 503, 507) else 503
        kind = BAD_REQUEST if status == 400 else SERVER_FAULT
        return error_response(status, kind, describe_fault(fault, show_text=show_text))
    try:
        check_answer(answer.status, answer.headers)
    except ModelFailed as error:
        return render_failure(error)
    return Response(answer.status, answer.headers, bytes(answer.body))


def check_answer(status: int, headers: Headers) -> None:
    """Refuse what would break HTTP.

    Raises:
        ModelFailed: a status or header that HTTP does not have, or that a handler may not set.
    """
    header_bytes = sum(len(name) + len(value) for name, value in headers)
    if not 200 <= status <= 599 or len(headers) > MAX_HEADERS or header_bytes > MAX_HEADER_BYTES:
        raise ModelFailed("the handler set a status or headers that HTTP does not have")
    if not all(is_safe_header(name, value) for name, value in headers):
        raise ModelFailed("the handler set a header that it may not set")


@lru_cache(maxsize=1024)
def is_safe_header(name: bytes, value: bytes) -> bool:
    """Whether a handler may send this header."""
    return bool(_NAME.fullmatch(name) and _VALUE.fullmatch(value)) and name not in _TRANSPORT_HEADERS

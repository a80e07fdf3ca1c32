"""``POST /predictions/{model}[/{version}]``: from a request to a worker's answer.

An answer comes from a guest: its status and headers are checked before they reach a transport.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from functools import lru_cache

from cloister.errors import CloisterError, ModelFailed
from cloister.serve.frames import AnswerItem
from cloister.serve.http.errors import render_failure
from cloister.serve.http.messages import Request, Response, error_response
from cloister.serve.process import describe_fault
from cloister.serve.registry import Registry

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
_CREDENTIALS = frozenset((b"authorization", b"cookie", b"proxy-authorization"))
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_768

# TorchServe sends these with every answer.
_NO_CACHE = (b"cache-control", b"no-cache; no-store, must-revalidate, private")
_run = secrets.token_hex(4)
_requests = itertools.count(1)


class Predictions:
    """Answers prediction requests from the registry's models."""

    def __init__(self, registry: Registry, *, protected: bool) -> None:
        self._registry = registry
        self._protected = protected

    async def answer(self, request: Request, name: str, version: str | None) -> Response:
        """The model's answer, or an error in TorchServe's form."""
        started = time.monotonic()
        try:
            model = self._registry.find(name, version)
        except CloisterError as error:
            return render_failure(error)
        request_id = next_request_id()
        headers = request.headers
        if self._protected:  # what lets a caller in is no business of the model
            headers = [pair for pair in headers if pair[0] not in _CREDENTIALS]
        try:
            item, body = await model.supervisor.submit(request_id, headers, request.query, request.content)
            response = render_answer(item, body, show_text=not self._protected)
        except CloisterError as error:
            response = render_failure(error)
        response.headers.append((b"x-request-id", request_id.encode()))
        response.headers.append(_NO_CACHE)
        model.supervisor.stats.count(response.status, started)
        return response


def next_request_id() -> str:
    """A new request id in the form of a UUID: a random number of this run, and a counter."""
    number = next(_requests)
    return f"{_run}-0000-4000-8000-{number:012x}"


def render_answer(item: AnswerItem, body: bytes, *, show_text: bool = False) -> Response:
    """A worker's answer as a response.

    Raises:
        ModelFailed: a status or header that HTTP does not have.
    """
    fault = item.fault
    if fault is not None:
        status = item.status if item.status in (400, 503, 507) else 503
        kind = "BadRequestException" if status == 400 else "InternalServerException"
        return error_response(status, kind, describe_fault(fault, show_text=show_text))
    header_bytes = sum(len(name) + len(value) for name, value in item.headers)
    if not 200 <= item.status <= 599 or len(item.headers) > MAX_HEADERS or header_bytes > MAX_HEADER_BYTES:
        raise ModelFailed("the handler set a status or headers that HTTP does not have")
    if not all(is_safe_header(name, value) for name, value in item.headers):
        raise ModelFailed("the handler set a header that it may not set")
    return Response(item.status, item.headers, body)


@lru_cache(maxsize=1024)
def is_safe_header(name: bytes, value: bytes) -> bool:
    """Whether a handler may send this header."""
    return bool(_NAME.fullmatch(name) and _VALUE.fullmatch(value)) and name not in _TRANSPORT_HEADERS

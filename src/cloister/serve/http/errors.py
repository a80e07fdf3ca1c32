"""Which HTTP status each error has, in TorchServe's words where it has any.

Source: pytorch/serve 0.12, HttpRequestHandler.java: exceptions of org.pytorch.serve.http and their statuses.
"""

from __future__ import annotations

from cloister.errors import (
    CloisterError,
    ConfigError,
    KeyUnavailable,
    MalformedInput,
    ModelFailed,
    ModelNotFound,
    Overloaded,
    PolicyDenied,
    RequestTooLarge,
    TransportError,
    VerificationError,
    WorkerLost,
)
from cloister.serve.http.messages import Response, error_response
from cloister.serve.refusals import Refusal

STATUSES: dict[type[CloisterError], tuple[int, str]] = {
    MalformedInput: (400, "BadRequestException"),
    ModelNotFound: (404, "ModelNotFoundException"),
    RequestTooLarge: (413, "RequestEntityTooLargeException"),
    ModelFailed: (503, "InternalServerException"),
    WorkerLost: (503, "InternalServerException"),
    Overloaded: (503, "ServiceUnavailableException"),
    KeyUnavailable: (503, "ServiceUnavailableException"),
    TransportError: (503, "ServiceUnavailableException"),
    ConfigError: (400, "BadRequestException"),
    VerificationError: (403, "VerificationError"),
    PolicyDenied: (403, "PolicyDenied"),
}
RETRY_LATER = (b"retry-after", b"1")


def render_failure(error: CloisterError) -> Response:
    """The response for an error that a request met."""
    if isinstance(error, Refusal):
        response = error_response(error.status, error.kind, error.message)
        response.headers += error.headers
        return response
    for kind in type(error).__mro__:
        if kind in STATUSES:
            status, name = STATUSES[kind]
            response = error_response(status, name, error.message)
            if isinstance(error, Overloaded):
                response.headers.append(RETRY_LATER)
            return response
    return error_response(500, "InternalServerException", "Internal error")


def not_found() -> Response:
    """No such resource."""
    message = "Requested resource is not found, please refer to API document."
    return error_response(404, "ResourceNotFoundException", message)


def method_not_allowed(*allowed: str) -> Response:
    """The resource exists, the method does not."""
    message = "Requested method is not allowed, please refer to API document."
    response = error_response(405, "MethodNotAllowedException", message)
    response.headers.append((b"allow", ", ".join(allowed).encode()))
    return response


def plain_http_refused() -> Response:
    """Protected mode, plain HTTP: nothing that carries content is answered."""
    message = "this server is protected: use https, or seal the request with OHTTP"
    return error_response(403, "PlainHttpRefused", message)


def not_implemented(what: str) -> Response:
    """A part of TorchServe that is not here."""
    return error_response(501, "NotImplementedException", f"{what} are not supported")

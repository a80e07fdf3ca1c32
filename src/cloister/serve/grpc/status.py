"""HTTP statuses and errors as gRPC codes, and how TorchServe words them.

Source: pytorch/serve 0.12, GRPCUtils.getGRPCStatusCode; ManagementImpl and InferenceImpl (sendErrorResponse).
"""

from __future__ import annotations

import msgspec
from grpc import StatusCode

from cloister.errors import CloisterError
from cloister.serve.http.errors import render_failure
from cloister.serve.http.messages import Response

_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.ABORTED,
    413: StatusCode.RESOURCE_EXHAUSTED,
    416: StatusCode.OUT_OF_RANGE,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
_ARCHIVE_MODEL = frozenset(
    (
        "InvalidKeyException",
        "InvalidModelException",
        "ModelException",
        "ModelNotFoundException",
        "ModelVersionNotFoundException",
    )
)


class Failure(msgspec.Struct, frozen=True):
    """What went wrong, before it is put into a protocol's words."""

    status: int = msgspec.field(name="code")
    """As HTTP would say it."""
    kind: str = msgspec.field(name="type")
    message: str

    @property
    def code(self) -> StatusCode:
        """As gRPC says it."""
        return code_of(self.status)

    @property
    def details(self) -> str:
        """The message, and below it the exception as TorchServe names it."""
        return f"{self.message}\n{self.java_name}"

    @property
    def java_name(self) -> str:
        """Full name of TorchServe's exception."""
        if self.kind in _ARCHIVE_MODEL:
            return f"org.pytorch.serve.archive.model.{self.kind}"
        if self.kind == "DownloadArchiveException":
            return f"org.pytorch.serve.archive.{self.kind}"
        return f"org.pytorch.serve.http.{self.kind}"


def code_of(status: int) -> StatusCode:
    """The gRPC code of an HTTP status."""
    found = _CODES.get(status)
    if found is not None:
        return found
    if 200 <= status < 300:
        return StatusCode.OK
    if 400 <= status < 500:
        return StatusCode.FAILED_PRECONDITION
    return StatusCode.INTERNAL if 500 <= status < 600 else StatusCode.UNKNOWN


def failure_of(error: CloisterError) -> Failure:
    """An error that a call met."""
    return read_failure(render_failure(error))


def read_failure(response: Response) -> Failure:
    """An error in TorchServe's HTTP form; what a handler made instead of one is passed on as text."""
    content = response.content if isinstance(response.content, bytes) else b""
    try:
        found = msgspec.json.decode(content, type=Failure)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        text = content[:4096].decode("utf-8", "replace")
        return Failure(response.status, "InternalServerException", text)
    return Failure(response.status, found.kind, found.message)

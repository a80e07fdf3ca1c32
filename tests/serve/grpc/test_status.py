"""HTTP statuses and errors as gRPC codes."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from cloister.errors import MalformedInput, ModelNotFound, Overloaded
from cloister.serve.grpc.status import code_of, failure_of, read_failure
from cloister.serve.http.messages import Response
from cloister.serve.refusals import AlreadyRegistered, VersionNotFound


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, StatusCode.OK),
        (299, StatusCode.OK),
        (400, StatusCode.INVALID_ARGUMENT),
        (404, StatusCode.NOT_FOUND),
        (413, StatusCode.RESOURCE_EXHAUSTED),
        (418, StatusCode.FAILED_PRECONDITION),
        (503, StatusCode.UNAVAILABLE),
        (507, StatusCode.INTERNAL),
        (599, StatusCode.INTERNAL),
        (700, StatusCode.UNKNOWN),
    ],
)
def test_codes(status: int, code: StatusCode) -> None:
    """Codes are those of TorchServe's table."""
    assert code_of(status) is code


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (MalformedInput("x"), StatusCode.INVALID_ARGUMENT, "org.pytorch.serve.http.BadRequestException"),
        (
            ModelNotFound("x"),
            StatusCode.NOT_FOUND,
            "org.pytorch.serve.archive.model.ModelNotFoundException",
        ),
        (
            VersionNotFound("x"),
            StatusCode.NOT_FOUND,
            "org.pytorch.serve.archive.model.ModelVersionNotFoundException",
        ),
        (AlreadyRegistered("x"), StatusCode.ABORTED, "org.pytorch.serve.http.ConflictStatusException"),
        (Overloaded("x"), StatusCode.UNAVAILABLE, "org.pytorch.serve.http.ServiceUnavailableException"),
    ],
)
def test_errors(error: Exception, code: StatusCode, name: str) -> None:
    """Each error has its code, and TorchServe's name for it below its reason."""
    failure = failure_of(error)  # type: ignore[arg-type]
    assert failure.code is code
    assert failure.details == f"x\n{name}"


@pytest.mark.parametrize("content", [b"", b"text", b"{}", b'{"code": 1}', b"\xff"])
def test_what_a_handler_wrote_itself(content: bytes) -> None:
    """A handler's own words are passed on as text, whatever they are."""
    failure = read_failure(Response(599, [], content))
    assert (failure.status, failure.code) == (599, StatusCode.INTERNAL)
    assert failure.message == content.decode("utf-8", "replace")

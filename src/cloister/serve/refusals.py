"""Refusals of the management and inference APIs: each owns its HTTP status and TorchServe's name for it.

gRPC maps the same status to its own codes, so that both say the same.

Source: pytorch/serve 0.12, HttpRequestHandler.java, ApiUtils.java.
"""

from __future__ import annotations

from typing import ClassVar

from cloister.errors import ModelNotFound, ServingError


class Refusal(ServingError):
    """Root of the refusals."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "InternalServerException"

    def __init__(self, message: str, *, hint: str = "", allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.allowed = allowed

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What goes with the status over HTTP."""
        return [(b"allow", ", ".join(self.allowed).encode())] if self.allowed else []


class BadRequest(Refusal):
    """A parameter that cannot be."""

    status = 400
    kind = "BadRequestException"


class InvalidKey(Refusal):
    """No token, or one that does not let in."""

    status = 400
    kind = "InvalidKeyException"


class InvalidModel(Refusal):
    """The archive is not a model."""

    status = 400
    kind = "InvalidModelException"


class PackagesMissing(Refusal):
    """The packages that a model asks for could not be installed."""

    status = 400
    kind = "ModelException"


class DownloadFailed(Refusal):
    """An allowed URL gave no archive."""

    status = 400
    kind = "DownloadArchiveException"


class DefaultVersionKept(Refusal):
    """The default version goes last."""

    status = 403
    kind = "InvalidModelVersionException"


class VersionNotFound(Refusal, ModelNotFound):
    """No such version of a model that is there."""

    status = 404
    kind = "ModelVersionNotFoundException"


class MethodRefused(Refusal):
    """The method is not one of this resource, or is switched off."""

    status = 405
    kind = "MethodNotAllowedException"

    def __init__(self, *allowed: str) -> None:
        super().__init__("Requested method is not allowed, please refer to API document.", allowed=allowed)


class ResourceNotFound(Refusal):
    """No such path."""

    status = 404
    kind = "ResourceNotFoundException"

    def __init__(self) -> None:
        super().__init__("Requested resource is not found, please refer to API document.")


class CleaningTimedOut(Refusal):
    """A model's requests did not end in time, so it is still there."""

    status = 408
    kind = "RequestTimeoutException"


class AlreadyRegistered(Refusal):
    """This version of the model is there already."""

    status = 409
    kind = "ConflictStatusException"


class WorkersFailed(Refusal):
    """The workers of a model could not be started."""


class OutOfMemory(WorkersFailed):
    """The same, for want of memory."""

    status = 507


class NotSupported(Refusal):
    """A part of TorchServe that is not here."""

    status = 501
    kind = "NotImplementedException"


class NoWorker(Refusal):
    """The model has been scaled to nothing."""

    status = 503
    kind = "ServiceUnavailableException"

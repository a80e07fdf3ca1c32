"""What comes back from a prediction: an answer, or the service's error as one of this package's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cloister.errors import (
    CloisterError,
    MalformedInput,
    ModelFailed,
    ModelNotFound,
    Overloaded,
    PolicyDenied,
    Replayed,
    RequestTooLarge,
    ServingError,
    WorkerLost,
)
from cloister.ohttp.replay import DATE_PROBLEM

MAX_MESSAGE_CHARS = 500

# The service's word for the error decides, in TorchServe's vocabulary; the status where the word is unknown.
_BY_TYPE: dict[str, type[CloisterError]] = {
    "BadRequestException": ServingError,
    "InternalServerException": ModelFailed,
    "ModelNotFoundException": ModelNotFound,
    "ModelVersionNotFoundException": ModelNotFound,
    "RequestEntityTooLargeException": RequestTooLarge,
    "ServiceUnavailableException": Overloaded,
    DATE_PROBLEM: Replayed,
}
_BY_STATUS: dict[int, type[CloisterError]] = {
    401: PolicyDenied,
    403: PolicyDenied,
    404: ModelNotFound,
    408: WorkerLost,
    409: Replayed,
    413: RequestTooLarge,
    429: Overloaded,
    500: ModelFailed,
    503: Overloaded,
    504: WorkerLost,
    507: ModelFailed,
}
_DATE_HINT = "the service refuses requests dated more than a minute from its own time: check both clocks"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was opened and authenticated. Its repr leaves out what it says."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    content: bytes

    def header(self, name: str) -> str | None:
        """Value of the first header of this name."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def text(self) -> str:
        """The content as UTF-8; what is not UTF-8 is replaced."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The content as JSON.

        Raises:
            MalformedInput: it is not JSON.
        """
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise MalformedInput(f"answer is not JSON: {len(self.content)} bytes") from error

    def __repr__(self) -> str:
        return f"Answer({self.status}, {len(self.content)} bytes)"


def raise_for_status(answer: Answer) -> Answer:
    """``answer`` itself if it is a success.

    Raises:
        ServingError, PolicyDenied, Replayed: what the service says went wrong.
    """
    if answer.status < 400:
        return answer
    kind, message = _parse_error(answer.content)
    error = _BY_TYPE.get(kind) or _BY_STATUS.get(answer.status) or ServingError
    hint = _DATE_HINT if error is Replayed else ""
    raise error(message or f"the service answered HTTP status {answer.status}", hint=hint)


def _parse_error(content: bytes) -> tuple[str, str]:
    """Type and message of TorchServe's error or of RFC 9457's problem; empty where it is neither."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    kind, message = document.get("type", ""), document.get("message", document.get("title", ""))
    if not isinstance(kind, str) or not isinstance(message, str):
        return "", ""
    return kind, " ".join(message.split())[:MAX_MESSAGE_CHARS]

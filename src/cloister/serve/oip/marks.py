"""How the frontend tells a worker that a request is one of this protocol, and of which model.

Pairs beside the request's headers, by names that no HTTP header can have. The handler does not see them.
"""

from __future__ import annotations

from cloister.serve.frames import Headers

HEADER_LENGTH = "inference-header-content-length"
"""Length of the JSON part of a body that has tensors behind it."""
_PROTOCOL, _MODEL, _VERSION = ":protocol", ":model", ":version"


def mark(name: str, version: str) -> Headers:
    """The pairs to add to a request's headers."""
    return [
        (_PROTOCOL.encode(), b"oip"),
        (_MODEL.encode(), name.encode()),
        (_VERSION.encode(), version.encode()),
    ]


def is_marked(headers: Headers) -> bool:
    """Whether ``headers`` end with the pairs."""
    return len(headers) > 2 and headers[-1][0] == _VERSION.encode()


def take_marks(headers: dict[str, str]) -> tuple[str, str] | None:
    """Remove the pairs; name and version of the model if they were there."""
    name, version = headers.pop(_MODEL, ""), headers.pop(_VERSION, "")
    return (name, version) if headers.pop(_PROTOCOL, None) == "oip" else None

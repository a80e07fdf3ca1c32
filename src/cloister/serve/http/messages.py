"""A request and a response without their transport: the same over TLS, plain HTTP and OHTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from cloister.serve.frames import Headers

JSON = (b"content-type", b"application/json")


@dataclass(slots=True)
class Request:
    """One whole request. Its repr leaves out what it carries."""

    method: str
    path: str
    """Decoded, without the query."""
    query: bytes
    headers: Headers = field(repr=False)
    content: bytes = field(repr=False)

    def header(self, name: bytes) -> bytes:
        """Value of the first header of this lower-case name; empty if there is none."""
        return next((value for key, value in self.headers if key == name), b"")


@dataclass(slots=True)
class Response:
    """One whole response, without Content-Length: the transport adds it."""

    status: int
    headers: Headers = field(repr=False)
    content: bytes = field(repr=False)


def json_response(document: Any, status: int = 200) -> Response:
    """A response with a JSON body."""
    return Response(status, [JSON], msgspec.json.encode(document))


def error_response(status: int, kind: str, message: str) -> Response:
    """An error in TorchServe's form: ``{"code", "type", "message"}``."""
    return json_response({"code": status, "type": kind, "message": message}, status)

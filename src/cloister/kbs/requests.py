"""What the broker's handlers read from a request, within limits."""

from __future__ import annotations

import ssl

from starlette.requests import Request

from cloister.errors import MalformedInput
from cloister.kbs.administrators import Credential
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.refused import Refused


class TooLarge(MalformedInput):
    """A body over the limit of its route."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body, read only as far as the limit.

    Raises:
        TooLarge: it is longer.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or int(declared) > limit:
        raise TooLarge(f"the body may have {limit} bytes")
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise TooLarge(f"the body may have {limit} bytes")
    return bytes(received)


def resource_path(request: Request) -> ResourcePath:
    """The resource that path and query name.

    Raises:
        Refused: no such path is possible.
    """
    version = request.query_params.get("version")
    try:
        if version is not None and not (version.isascii() and version.isdigit() and len(version) < 10):
            raise MalformedInput("version must be a number")
        return ResourcePath.parse(request.path_params["path"], None if version is None else int(version))
    except MalformedInput as error:
        raise Refused("InvalidRequestPath", error.message) from error


def bearer(request: Request) -> str | None:
    """The bearer token, if there is one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def credential(request: Request) -> Credential:
    """What a request for administration shows: a bearer token, or the certificate that TLS has verified."""
    tls = request.scope.get("extensions", {}).get("tls", {})
    chain = tls.get("client_cert_chain") or ()
    certificate = ssl.PEM_cert_to_DER_cert(chain[0]) if chain else None
    return Credential(bearer(request), certificate)

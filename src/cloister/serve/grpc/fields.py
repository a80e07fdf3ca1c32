"""The ``input`` of TorchServe's ``PredictionsRequest`` as a body that workers decode into the same fields."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from cloister.errors import MalformedInput
from cloister.serve.frames import Headers

NO_TYPE: Headers = [(b"explain", b"False")]
MAX_NAME = 256


def encode_fields(fields: Mapping[str, bytes]) -> tuple[Headers, bytes]:
    """Headers and body: a lone ``body`` as it is, anything else as a form (RFC 7578).

    Values have no content type, so the handler gets each as a ``bytearray``, as under TorchServe.

    Raises:
        MalformedInput: a name that a form cannot have.
    """
    if len(fields) == 1 and "body" in fields:
        return NO_TYPE, fields["body"]
    # Nobody who chose the values can know the boundary.
    boundary = secrets.token_hex(16).encode()
    parts: list[bytes] = []
    for name, value in fields.items():
        if not name.isprintable() or len(name) > MAX_NAME:
            raise MalformedInput("a name in input is too long or not printable")
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').encode()
        parts += (
            b"--",
            boundary,
            b'\r\ncontent-disposition: form-data; name="',
            quoted,
            b'"\r\n\r\n',
            value,
            b"\r\n",
        )
    parts += (b"--", boundary, b"--\r\n")
    content_type = (b"content-type", b"multipart/form-data; boundary=" + boundary)
    return [*NO_TYPE, content_type], b"".join(parts)

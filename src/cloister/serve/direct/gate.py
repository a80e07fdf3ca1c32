"""Refuses requests whose shapes or types are not the model's, in the frontend, before a worker has them.

What is looked at is bounded: the JSON part of a request of the Open Inference Protocol, or a whole JSON
body, up to a number of bytes. What is longer, and what is no JSON at all, is checked in the worker before it
joins a batch. So is whatever this finds no fault with.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cloister.engines.schema import ModelSchema, TensorSpec
from cloister.serve.direct.documents import check_columns, read_columns
from cloister.serve.frames import Headers
from cloister.serve.oip.marks import HEADER_LENGTH, is_marked

DEFAULT_CHECK_BYTES = 1 << 14
_HEADER_LENGTH = HEADER_LENGTH.encode()


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw = msgspec.Raw()


class _Request(msgspec.Struct):
    inputs: list[_Tensor]


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_json = msgspec.json.Decoder().decode


class InputGate:
    """The check of one model's requests."""

    def __init__(self, schema: ModelSchema, *, most_bytes: int, pictures: bool = False) -> None:
        """
        Args:
            most_bytes: longer JSON is left to the worker.
            pictures: the model takes pictures too, whose JSON form holds them as text.
        """
        self.schema = schema
        self._most_bytes = most_bytes
        self._pictures = pictures

    def check(self, headers: Headers, body: bytes | memoryview) -> None:
        """Refuse what the worker would refuse.

        Raises:
            MalformedInput: the inputs are not the model's. Says what was expected.
        """
        marked = is_marked(headers)
        if not marked and len(body) > self._most_bytes:
            return
        kind, head_bytes = b"", b""
        for name, value in headers:
            if name == b"content-type":
                kind = value
            elif name == _HEADER_LENGTH:
                head_bytes = value
            elif name == b"describe" or (name == b"explain" and value == b"True"):
                return
        if marked:
            self._check_tensors(body, head_bytes)
        elif kind.startswith(b"application/json"):
            self._check_json(body)

    def _check_tensors(self, body: bytes | memoryview, head_bytes: bytes) -> None:
        size = len(body)
        if head_bytes:
            if not head_bytes.isdigit() or len(head_bytes) > 15:
                return
            size = int(head_bytes)
        if size > min(self._most_bytes, len(body)):
            return
        try:
            request = _decode_request(memoryview(body)[:size])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # the worker says what is wrong with it
        if any(-1 in item.shape for item in request.inputs):
            return  # a size that only the data say
        self.schema.check_declared(
            TensorSpec(item.name, item.datatype, tuple(item.shape))  # type: ignore[arg-type]
            for item in request.inputs
        )

    def _check_json(self, body: bytes | memoryview) -> None:
        try:
            document: Any = _decode_json(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if self._pictures and _is_text(document):
            return
        check_columns(read_columns(document, self.schema), self.schema)


def _is_text(document: Any) -> bool:
    """Whether a document is a picture as text, or rows of such."""
    if isinstance(document, dict):
        rows = document.get("instances")
        document = rows[0] if isinstance(rows, list) and rows else document
    return isinstance(document, str) or (isinstance(document, dict) and document.keys() == {"b64"})

"""``request_envelope.json``: TensorFlow Serving's ``{"instances": [...]}`` and ``{"predictions": [...]}``.

Source: TensorFlow Serving, "RESTful API", sections "Request format" and "Encoding binary values".
"""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from cloister.serve.torchserve.envelopes.base import BaseEnvelope, body_of


class JSONEnvelope(BaseEnvelope):
    """All instances of all requests as one batch."""

    def __init__(self, handle_fn: Any) -> None:
        super().__init__(handle_fn)
        self._lengths: list[int] = []

    def parse_input(self, data: Any) -> Any:
        rows = [_instances(row) for row in data]
        self._lengths = [len(row) for row in rows]
        return [instance for row in rows for instance in row]

    def format_output(self, data: Any) -> Any:
        answers, start = [], 0
        for length in self._lengths:
            answers.append(json.dumps({"predictions": data[start : start + length]}))
            start += length
        return answers


def _instances(row: Any) -> list[Any]:
    document = body_of(row) or row
    if isinstance(document, bytes | bytearray):
        document = json.loads(document)
    return [_decoded(instance) for instance in document["instances"]]


def _decoded(instance: Any) -> Any:
    """With ``{"b64": text}`` as the bytes that it stands for, alone or as a column."""
    if not isinstance(instance, dict):
        return instance
    if list(instance) == ["b64"]:
        return b64decode(instance["b64"])
    return {
        name: b64decode(value["b64"]) if isinstance(value, dict) and list(value) == ["b64"] else value
        for name, value in instance.items()
    }

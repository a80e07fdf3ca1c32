"""``request_envelope.body``: the bare bodies as a list."""

from __future__ import annotations

from typing import Any

from cloister.serve.torchserve.envelopes.base import BaseEnvelope, body_of


class BodyEnvelope(BaseEnvelope):
    """Bodies in, results out."""

    def parse_input(self, data: Any) -> Any:
        return [body_of(row) for row in data]

    def format_output(self, data: Any) -> Any:
        return data

"""``request_envelope.kserve``: KServe's protocol V1, one request at a time.

Source: pytorch/serve 0.12, ts/torch_handler/request_envelope/kserve.py.
"""

from __future__ import annotations

import json
from typing import Any

from cloister.serve.torchserve.envelopes.base import BaseEnvelope, body_of


class KServeEnvelope(BaseEnvelope):
    """``instances`` in, ``predictions`` (or ``explanations``) out."""

    def parse_input(self, data: Any) -> Any:
        document = body_of(data[0])
        if isinstance(document, bytes | bytearray):
            document = json.loads(document)
        return document.get("instances")

    def format_output(self, data: Any) -> Any:
        explained = self.context.get_request_header(0, "explain") == "True"
        return [{"explanations" if explained else "predictions": data}]

"""The tiny model for gRPC, whose messages carry bytes without saying of what kind."""

from __future__ import annotations

import json
from typing import Any

from tiny import Tiny


class GrpcHandler:
    """Named by the archive's manifest."""

    def initialize(self, context: Any) -> None:
        self.model = Tiny()

    def handle(self, data: Any, context: Any) -> Any:
        return self.model.predict([json.loads(bytes(row["data"])) for row in data])

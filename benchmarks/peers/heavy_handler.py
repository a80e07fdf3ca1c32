"""ResNet-50 or BERT-Large as a handler of TorchServe, packed with `heavy.py`; see `rig/heavy_servers.py`."""

from __future__ import annotations

import os
from typing import Any

from heavy import open_model


class HeavyHandler:
    """Named by the archive's manifest."""

    def initialize(self, context: Any) -> None:
        self.model = open_model(*(os.environ[f"HEAVY_{name}"] for name in ("TASK", "FOLDER", "FORM")))

    def handle(self, data: Any, context: Any) -> Any:
        return self.model.answer([row.get("body") or row.get("data") for row in data])

"""ResNet-50 or BERT-Large as a handler of TorchServe, which Cloister runs too; `heavy.py` is packed with it.

Which model in which form comes from the archive's configuration, or from the environment where it has none.
"""

from __future__ import annotations

import os
from typing import Any

from heavy import open_model


class HeavyHandler:
    """Named by the archive's manifest."""

    def initialize(self, context: Any) -> None:
        config = getattr(context, "model_yaml_config", None) or {}
        self.model = open_model(
            config.get("task") or os.environ["HEAVY_TASK"],
            os.environ["HEAVY_FOLDER"]
            if "HEAVY_FOLDER" in os.environ
            else context.system_properties["model_dir"],
            config.get("form") or os.environ["HEAVY_FORM"],
        )

    def handle(self, data: Any, context: Any) -> Any:
        return self.model.answer([row.get("body") or row.get("data") for row in data])

"""The tiny model as a handler of TorchServe, which Cloister runs too."""

from __future__ import annotations

from typing import Any

from tiny import Tiny


class TinyHandler:
    """Named by the archive's manifest."""

    def initialize(self, context: Any) -> None:
        self.model = Tiny()

    def handle(self, data: Any, context: Any) -> Any:
        return self.model.predict([row.get("body") for row in data])

"""``request_envelope.base``: takes a request out of its form, and puts the answer into one.

Source: pytorch/serve 0.12, ts/torch_handler/request_envelope (names and behaviour).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any


class BaseEnvelope(abc.ABC):
    """Stands before a handler's ``handle``."""

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """Parse, handle, format; nothing is parsed when there is no data, as at the first call."""
        self.context = context
        results = self._handle_fn(self.parse_input(data) if data else data, context)
        return self.format_output(results) if results else results

    @abc.abstractmethod
    def parse_input(self, data: Any) -> Any: ...

    @abc.abstractmethod
    def format_output(self, data: Any) -> Any: ...


def body_of(row: Any) -> Any:
    """What a request carries, in the field of either name."""
    return row.get("data") or row.get("body")

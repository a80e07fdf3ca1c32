"""``ts.handler_utils.timer``: the ``timed`` decorator of handler methods."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def timed(function: Function) -> Function:
    """Record how long a handler's method takes as the metric ``ts_handler_<method>``, in milliseconds.

    Only where the model's settings have ``handler: {profile: true}``.
    """

    @functools.wraps(function)
    def timing(self: Any, *args: Any, **kwargs: Any) -> Any:
        context = getattr(self, "context", None)
        settings = getattr(context, "model_yaml_config", None)
        handler = settings.get("handler") if settings else None
        if not isinstance(handler, Mapping) or not handler.get("profile"):
            return function(self, *args, **kwargs)
        start = time.perf_counter()
        result = function(self, *args, **kwargs)
        _wait_for_device(getattr(self, "device", None))
        elapsed_ms = (time.perf_counter() - start) * 1000
        context.metrics.add_time(f"ts_handler_{function.__name__}", elapsed_ms)  # type: ignore[union-attr]
        return result

    return timing  # type: ignore[return-value]


def _wait_for_device(device: Any) -> None:
    if getattr(device, "type", "") == "cuda":
        import torch

        torch.cuda.synchronize(device)

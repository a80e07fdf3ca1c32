"""``ts.handler_utils.timer``: the ``timed`` decorator of handler methods."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def timed(function: Function) -> Function:
    """Record how long a handler's method takes as the metric ``ts_handler_<method>``, in milliseconds."""

    @functools.wraps(function)
    def timing(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(self, *args, **kwargs)
        metrics = getattr(getattr(self, "context", None), "metrics", None)
        if metrics is not None:
            metrics.add_time(f"ts_handler_{function.__name__}", (time.perf_counter() - start) * 1000)
        return result

    return timing  # type: ignore[return-value]

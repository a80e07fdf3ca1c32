"""How many threads an engine may use, and several inferences at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cloister.engines.engine import Array, Arrays


def available_cores() -> int:
    """The cores that this process may run on: those that its worker is pinned to, if it is."""
    return max(1, len(os.sched_getaffinity(0)))


def infer_in_threads(
    infer: Callable[[Arrays], dict[str, Array]], batches: Sequence[Arrays], streams: int
) -> list[dict[str, Array]]:
    """The outputs for each of several inputs, in order, ``streams`` at a time."""
    if streams < 2 or len(batches) < 2:
        return [infer(inputs) for inputs in batches]
    with ThreadPoolExecutor(min(streams, len(batches)), thread_name_prefix="infer") as pool:
        return list(pool.map(infer, batches))

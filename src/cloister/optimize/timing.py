"""How long a model takes: one call at a time, and many of them.

Source: BigDL Nano 2.4, `InferenceOptimizer`: two warm-ups, a mean without the tenth at either end, ten
seconds at most, and an end after three calls that each take over four times the original's. Other than
there, a model whose calls are done at once is measured to the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WARM_UPS = 2
TRIMMED = 0.1
"""The share of the calls that is left out at either end."""
CAP_S = 10.0
EARLY_CALLS = 3
EARLY_FACTOR = 4.0
WORTH_S = 0.1
"""An end that saves less is none: calls of microseconds differ by more than ``EARLY_FACTOR``."""

Clock = Callable[[], float]


class TooSlow(Exception):
    """The first calls take so much longer than the original's that the rest is not worth the time."""

    def __init__(self, best_s: float, original_s: float) -> None:
        super().__init__(f"at least {best_s * 1e3:.3g} ms a call, the original {original_s * 1e3:.3g} ms")


@dataclass(frozen=True, slots=True)
class Latency:
    """Of single calls, in milliseconds."""

    mean_ms: float
    """Without the slowest and the fastest tenth."""
    p50_ms: float
    p99_ms: float
    calls: int


def trimmed_mean(values: Sequence[float], share: float = TRIMMED) -> float:
    """The mean without this share of the values at either end; of all, where that leaves none."""
    ordered = sorted(values)
    cut = int(len(ordered) * share)
    kept = ordered[cut : len(ordered) - cut] or ordered
    return math.fsum(kept) / len(kept)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all values does not exceed, between neighbours by their distance."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def measure_latency(
    call: Callable[[int], object],
    *,
    samples: int = 100,
    cap_s: float = CAP_S,
    original_s: float | None = None,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Time single calls.

    Args:
        call: runs the model once; gets the number of the call, to choose its input by.
        original_s: the original's latency; the measurement ends where each of the first calls takes over four
            times as long.
    Raises:
        TooSlow: each of the first three calls took over four times the original's, and the others would take
            at least ``WORTH_S``.
    """
    for number in range(WARM_UPS):
        call(number)
    started = clock()
    took: list[float] = []
    for number in range(samples):
        before = clock()
        call(number)
        after = clock()
        took.append(after - before)
        if len(took) == EARLY_CALLS and original_s:
            # The fastest of them: of calls that take microseconds, one that was interrupted proves nothing.
            best = min(took)
            left_s = best * (samples - len(took))
            if best > EARLY_FACTOR * original_s and left_s >= WORTH_S:
                raise TooSlow(best, original_s)
        if after - started >= cap_s:
            break
    in_ms = [value * 1e3 for value in took]
    return Latency(trimmed_mean(in_ms), percentile(in_ms, 0.5), percentile(in_ms, 0.99), len(took))


def measure_throughput(
    wave: Callable[[], int], *, seconds: float, clock: Clock = time.perf_counter
) -> tuple[float, int]:
    """Rows a second, and how many were computed.

    Args:
        wave: computes many requests at once and returns how many rows they had.
    """
    rows, started = 0, clock()
    while True:
        rows += wave()
        took = clock() - started
        if took >= seconds:
            return rows / took, rows

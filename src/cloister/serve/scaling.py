"""How many workers a model should have, from what is asked of it: between its minimum and its maximum."""

from __future__ import annotations

UP_HOLD_S = 1.0
"""Requests must have waited for so long, without a pause, before one more worker is started."""
DOWN_HOLD_S = 60.0
"""One worker fewer must have been enough for so long before one is ended."""
SPARE_SHARE = 0.8
"""How busy the remaining workers may be for one to be ended."""


class Autoscaler:
    """Sees the load at each check and says how many workers there should be. Knows no process, no clock."""

    def __init__(self, *, up_hold_s: float = UP_HOLD_S, down_hold_s: float = DOWN_HOLD_S) -> None:
        self._up_hold_s = up_hold_s
        self._down_hold_s = down_hold_s
        self._pressed_since: float | None = None
        self._slack_since: float | None = None
        self._busy = 0.0

    def wanted(self, now: float, *, workers: int, busy: int, waiting: int, low: int, high: int) -> int:
        """How many workers there should be.

        Args:
            workers: how many there are or will be.
            busy: how many of them have something to do.
            waiting: requests that no worker has room for.
        """
        if not low <= workers <= high:
            self._pressed_since = self._slack_since = None
            return min(max(workers, low), high)
        self._busy += 0.1 * (busy - self._busy)
        if workers == 0:
            return 1 if waiting and high else 0
        if waiting and workers < high:
            self._slack_since = None
            if self._pressed_since is None:
                self._pressed_since = now
            elif now - self._pressed_since >= self._up_hold_s:
                self._pressed_since = now  # the next one needs as long again: this one has to load first
                return workers + 1
            return workers
        self._pressed_since = None
        if workers > low and self._busy <= (workers - 1) * SPARE_SHARE and not waiting:
            if self._slack_since is None:
                self._slack_since = now
            elif now - self._slack_since >= self._down_hold_s:
                self._slack_since = now
                return workers - 1
        else:
            self._slack_since = None
        return workers

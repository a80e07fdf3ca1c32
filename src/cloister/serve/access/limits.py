"""How much one caller may ask: a rate, and a quota by the day (UTC). In memory, of this server alone."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

MAX_CALLERS = 100_000
BURST_S = 2.0
DAY_S = 86_400


@dataclass(slots=True)
class _Account:
    level: float
    filled: float
    day: int
    used: int


class CallerLimits:
    """Counts by the caller's name; to be used from one thread.

    Args:
        per_s: requests per second; 0 allows any number. Two seconds' worth may come at once.
        per_day: requests per day; 0 allows any number.
    """

    def __init__(self, per_s: float = 0.0, per_day: int = 0) -> None:
        self._per_s, self._per_day = per_s, per_day
        self._size = max(1.0, per_s * BURST_S)
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    @property
    def is_on(self) -> bool:
        """Whether anything is limited."""
        return bool(self._per_s or self._per_day)

    def wait_s(self, caller: str, now_s: float) -> int:
        """0 if a request may be answered, and it is counted; else after how many seconds to ask again.

        Args:
            now_s: seconds since 1970.
        """
        if not self.is_on:
            return 0
        day = int(now_s // DAY_S)
        account = self._accounts.get(caller)
        if account is None:
            account = self._accounts[caller] = _Account(self._size, now_s, day, 0)
            while len(self._accounts) > MAX_CALLERS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(caller)
        if account.day != day:
            account.day, account.used = day, 0
        if self._per_day and account.used >= self._per_day:
            return math.ceil((day + 1) * DAY_S - now_s)
        if self._per_s:
            account.level = min(self._size, account.level + max(0.0, now_s - account.filled) * self._per_s)
            account.filled = now_s
            if account.level < 1.0:
                return math.ceil((1.0 - account.level) / self._per_s)
            account.level -= 1.0
        account.used += 1
        return 0

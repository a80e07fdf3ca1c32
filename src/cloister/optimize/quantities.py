"""Constraints as people write them: ``0.5%``, ``20ms``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cloister.errors import ConfigError

_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})"
_DURATION = re.compile(_NUMBER + r"\s?(us|ms|s|min|m)", re.ASCII)
_DROP = re.compile(_NUMBER + r"\s?(%?)", re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}


@dataclass(frozen=True, slots=True)
class Drop:
    """How much worse than the original a metric may be."""

    value: float
    percent: bool
    """Points where the metric is a share of one (accuracy), else relative to the original's value."""

    def allowed(self, original: float, *, share: bool) -> float:
        """In the metric's own unit."""
        if not self.percent:
            return self.value
        return self.value / 100 * (1.0 if share else abs(original))

    def render(self) -> str:
        """As it is written."""
        return f"{self.value:g}{'%' if self.percent else ''}"


def parse_drop(text: str) -> Drop:
    """A drop: ``0.5%``, or ``0.005`` in the metric's own unit.

    Raises:
        ConfigError: not of that form, or over 100 %.
    """
    found = _DROP.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{text[:40]!r} is no drop", hint="such as 0.5% or 0.005")
    drop = Drop(float(found[1]), found[2] == "%")
    if drop.percent and drop.value > 100:
        raise ConfigError(f"a drop of {drop.render()} is more than everything")
    return drop


def parse_duration(text: str) -> float:
    """Seconds of a duration with its unit: us, ms, s, m or min.

    Raises:
        ConfigError: not of that form, or zero.
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{text[:40]!r} is no duration", hint="such as 20ms, 1.5s or 6m")
    return seconds

"""Plots as SVG, made of nothing but text: bars, and points in a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
_LEFT, _RIGHT, _BAR, _GAP = 220, 90, 22, 8


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing in a plot."""

    label: str
    x: float
    y: float = 0.0
    best: bool = False


def bars(marks: Sequence[Mark], *, unit: str) -> str:
    """A horizontal bar for each mark, of length ``x``."""
    most = max((mark.x for mark in marks), default=0.0) or 1.0
    height = len(marks) * (_BAR + _GAP) + _GAP
    room = WIDTH - _LEFT - _RIGHT
    parts = [_open(height, f"{unit} of each method")]
    for place, mark in enumerate(marks):
        top = _GAP + place * (_BAR + _GAP)
        length = max(1.0, room * mark.x / most)
        kind = "best" if mark.best else "bar"
        middle = top + _BAR * 0.7
        parts.append(f'<text x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(mark.label)}</text>')
        parts.append(
            f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{length:.1f}" height="{_BAR}" rx="3"/>'
        )
        parts.append(
            f'<text x="{_LEFT + length + 6:.1f}" y="{middle:.1f}">{mark.x:.4g} {escape(unit)}</text>'
        )
    return "".join([*parts, "</svg>"])


def plane(marks: Sequence[Mark], *, x_name: str, y_name: str, height: int = 320) -> str:
    """A labelled point for each mark; ``x`` on a logarithmic scale."""
    if not marks:
        return ""
    xs = [math.log10(max(mark.x, 1e-9)) for mark in marks]
    x_low, x_high = _widen(min(xs), max(xs))
    y_low, y_high = _widen(min(mark.y for mark in marks), max(mark.y for mark in marks))
    left, bottom = 70, height - 40
    parts = [_open(height, f"{y_name} against {x_name}")]
    parts.append(f'<path class="axis" d="M{left} 10V{bottom}H{WIDTH - 20}"/>')
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - 20)
        x = left + share * (WIDTH - left - 160)
        value = y_low + share * (y_high - y_low)
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{10 ** (x_low + share * (x_high - x_low)):.3g}</text>"
        )
    for mark, at in zip(marks, xs, strict=True):
        x = left + (at - x_low) / (x_high - x_low) * (WIDTH - left - 160)
        y = bottom - (mark.y - y_low) / (y_high - y_low) * (bottom - 20)
        kind = "best" if mark.best else "bar"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(mark.label)}</text>')
    parts.append(f'<text x="{WIDTH - 20}" y="{height - 8}" text-anchor="end">{escape(x_name)}</text>')
    parts.append(f'<text x="{left + 8}" y="20">{escape(y_name)}</text>')
    return "".join([*parts, "</svg>"])


def _open(height: int, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>{escape(title)}</title>"
    )


def _widen(low: float, high: float) -> tuple[float, float]:
    """A little room on either side, so that equal values are not on an edge."""
    room = (high - low) * 0.1 or max(abs(high) * 0.01, 1e-3)
    return low - room, high + room

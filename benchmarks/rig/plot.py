"""Bars as SVG, by hand: a dozen rectangles need no library of fifty megabytes. Readable in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#7a8b99", "#2a9d8f", "#e07a3f", "#6a4c93", "#c1443c", "#3a6ea5")
WIDTH, ROW, GAP, LEFT, RIGHT, TOP = 640, 20, 14, 150, 90, 34


@dataclass(frozen=True)
class Bars:
    """Groups of bars, one for each series."""

    title: str
    series: Sequence[str]
    groups: Mapping[str, Sequence[float]]
    """A value for each series, none negative."""


def render_bars(bars: Bars) -> str:
    """The plot as a document of SVG; every value is written beside its bar."""
    largest = max((value for values in bars.groups.values() for value in values), default=0.0) or 1.0
    parts, y = [], TOP
    for group, values in bars.groups.items():
        middle = y + len(values) * ROW / 2 + 5
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(group)}</text>')
        for number, value in enumerate(values):
            width = (WIDTH - LEFT - RIGHT) * value / largest
            colour = COLOURS[number % len(COLOURS)]
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{ROW - 4}" fill="{colour}"/>'
                f'<text x="{LEFT + width + 6:.1f}" y="{y + ROW - 7}">{_short(value)}</text>'
            )
            y += ROW
        y += GAP
    for number, name in enumerate(bars.series if len(bars.series) > 1 else ()):
        x = LEFT + number * 110
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 11}">{escape(name)}</text>')
    height = y + 24
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="13" fill="#808890">'
    )
    title = f'<text x="{LEFT}" y="20" font-weight="bold">{escape(bars.title)}</text>'
    return "\n".join([head, title, *parts, "</svg>", ""])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

"""The table of a search for people, made anew with each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from cloister.optimize.job import Status
from cloister.optimize.metrics import Metric
from cloister.optimize.result import Row

_COLOURS = {Status.SUCCESSFUL: "green", Status.EARLY_STOPPED: "yellow", Status.NOT_TRIED: "dim"}
WIDTH = 132
"""What the table takes where nothing says how wide the terminal is."""


def render_table(
    rows: Sequence[Row], *, concurrency: int, metric: Metric | None, best: str = "", now: str = ""
) -> Table:
    """All rows so far.

    Args:
        best: the method to mark.
        now: what is done at the moment, for a last line.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=False, caption=now or None)
    table.caption_justify = "left"
    table.add_column("method", no_wrap=True, min_width=22)
    table.add_column("status", no_wrap=True)
    heads = ["p50 ms", f"/s at {concurrency}", "streams\nx rows", "memory", "size"]
    heads += [metric.name, "drop"] if metric else []
    for head in [*heads, "cosine"]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, metric), style="bold" if row.name == best else "")
    return table


def render_reasons(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each method that did not succeed: why."""
    for row in rows:
        if row.reason:
            yield f"{row.name}: {row.reason}"


def _cells(row: Row, metric: Metric | None) -> list[Text | str]:
    status = Text(str(row.status), _COLOURS.get(row.status, "red"))
    measured, timing = row.measured, row.best_timing
    if measured is None or timing is None:
        return [row.name, status]
    cells: list[Text | str] = [
        row.name,
        status,
        f"{measured.p50_ms:.3g}" if measured.p50_ms < 1000 else f"{measured.p50_ms:.0f}",
        f"{timing.per_s:,.1f}",
        f"{timing.streams} x {timing.rows}",
        render_bytes(measured.memory_bytes),
        render_bytes(row.size_bytes),
    ]
    if metric is not None:
        cells += [_number(row.metric, 4), _number(row.drop, 4)]
    return [*cells, _number(row.cosine, 4)]


def render_bytes(count: int) -> str:
    """Bytes in MiB or KiB."""
    return f"{count / (1 << 20):,.0f} MiB" if count >= 1 << 20 else f"{count / 1024:,.1f} KiB"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"

"""The report of a search: one HTML file that needs no other, and no network."""

from __future__ import annotations

from html import escape

from cloister.optimize.job import Status
from cloister.optimize.plot import Mark, bars, plane
from cloister.optimize.result import Result, Row
from cloister.optimize.table import render_bytes

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --paper: #fff; --line: #d5dce3; --bar: #7aa7b8;
  --best: #0b7a75; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e9ef; --paper: #14191f; --line: #38434e; --bar: #50788a; --best: #35b8b0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: right;
  vertical-align: top; }
th:first-child, td:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
tr.best td { font-weight: 600; } small { opacity: .75; display: block; font-weight: normal; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.bar { fill: var(--bar); } .best { fill: var(--best); } .axis { fill: none; stroke: var(--line); }
"""


def render_report(result: Result, title: str) -> str:
    """The whole page."""
    best = result.best()
    name = best.name if best else ""
    good = [row for row in result.rows if row.status is Status.SUCCESSFUL and row.measured is not None]
    judged = [row for row in good if row.metric is not None or row.cosine is not None]
    by_metric = result.metric is not None and all(row.metric is not None for row in judged)
    points = [
        Mark(row.name, _latency(row), (row.metric if by_metric else row.cosine) or 0.0, row.name == name)
        for row in judged
    ]
    y_name = result.metric.name if by_metric and result.metric else "cosine of outputs"
    throughputs = [
        Mark(row.name, row.best_timing.per_s, 0.0, row.name == name) for row in good if row.best_timing
    ]
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_verdict(result))}</p>",
        _table(result, name),
        f"<h2>Throughput, {result.concurrency} requests at once</h2>",
        bars(throughputs, unit="per s"),
        "<h2>Latency of one request</h2>",
        bars([Mark(row.name, _latency(row), 0.0, row.name == name) for row in good], unit="ms"),
        f"<h2>{escape(y_name.capitalize())} and latency</h2>",
        plane(points, x_name="latency p50, ms", y_name=y_name),
        "<h2>Memory</h2>",
        bars([Mark(row.name, _memory(row), 0.0, row.name == name) for row in good], unit="MiB"),
        "<h2>Measured with</h2>",
        f"<p>{escape(_machine(result))}</p>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(sections)
        + "</body></html>\n"
    )


def _verdict(result: Result) -> str:
    best, original = result.best(), result.original
    if best is None:
        return "No method fits the constraints."
    found = f"Best by {result.goal.objective}: {best.name}"
    if original is not None and original is not best and best.best_timing and original.best_timing:
        ratio = best.best_timing.per_s / original.best_timing.per_s
        found += f", {ratio:.2f} times the throughput of {original.name}"
    return f"{found}. The search took {result.took_s:.0f} s."


def _table(result: Result, best: str) -> str:
    metric = result.metric
    heads = ["method", "status", "p50 ms", "p99 ms", "per s", "streams x rows", "memory", "size"]
    heads += [metric.name, "drop"] if metric else []
    heads.append("cosine")
    lines = ["<table><thead><tr>", *(f"<th>{escape(head)}</th>" for head in heads), "</tr></thead><tbody>"]
    for row in result.rows:
        cells = _cells(result, row)
        lines.append(f"<tr{' class=best' if row.name == best else ''}>{''.join(cells)}")
        lines.append("<td></td>" * (len(heads) - len(cells)) + "</tr>")
    return "".join([*lines, "</tbody></table>"])


def _cells(result: Result, row: Row) -> list[str]:
    why = row.reason or "; ".join(result.objections(row) if row.measured else [])
    status = escape(str(row.status)) + (f"<small>{escape(why)}</small>" if why else "")
    cells = [f"<td>{escape(row.name)}</td>", f"<td>{status}</td>"]
    measured, timing = row.measured, row.best_timing
    if measured is None or timing is None:
        return cells
    values = [f"{measured.p50_ms:.4g}", f"{measured.p99_ms:.4g}", f"{timing.per_s:.4g}"]
    values += [f"{timing.streams} x {timing.rows}", render_bytes(measured.memory_bytes)]
    values.append(render_bytes(row.size_bytes))
    judged = [row.metric, row.drop, row.cosine] if result.metric else [row.cosine]
    values += ["" if value is None else f"{value:.4f}" for value in judged]
    return cells + [f"<td>{value}</td>" for value in values]


def _machine(result: Result) -> str:
    return ", ".join(
        [*(f"{name} {value}" for name, value in result.machine.items()), f"threads {result.threads}"]
    )


def _latency(row: Row) -> float:
    return row.measured.p50_ms if row.measured else 0.0


def _memory(row: Row) -> float:
    return row.measured.memory_bytes / (1 << 20) if row.measured else 0.0

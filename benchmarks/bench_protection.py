"""The price of protection: the same server, model and load, open and protected.

Usage: python benchmarks/bench_protection.py [--tasks tiny,resnet50,bert-large] [--precisions fp32,bf16,int8]
           [--ways open,tls,ohttp] [--callers 16] [--rounds 3] [--seconds 10] [--json] [--page]

*open* is plain HTTP and plain archives; *tls* a sealed model behind attested TLS with kept connections;
*ohttp* a sealed model and requests that were sealed ahead, each sent once, some answers opened afterwards
and compared with the open server's. An open server and a protected one run at the same time with all
precisions, one of them is loaded at a time; what they use while nobody asks is in the result. Ratios are
medians of the ratios within a round. ResNet-50 gets a JPEG of 640x480, BERT-Large 128 token ids; weights are
random. The tiny model is loaded by wrk with 64 callers, the others by `rig/callers.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rig.forms import PRECISIONS, TASKS, ensure_forms
from rig.options import Results, make_parser
from rig.page import render_table
from rig.plot import Bars, render_bars
from rig.protected import SEALED_TYPE, Protected, seal_bodies, start_protected
from rig.rounds import Rounds, run_in_turn
from rig.servers import processor_s
from rig.tiny_servers import BODY, pack_tiny
from rig.ways import Asking, Open, pack_heavy, start_open
from rig.wrk import run_wrk

WAYS = ("open", "tls", "ohttp")
TITLES = {"tiny": "Tiny model, JSON", "resnet50": "ResNet-50, JPEG", "bert-large": "BERT-Large, 128 tokens"}
TINY_CALLERS = 64
SEALED_PER_S = 8_000
"""More sealed requests than this per second are not sent to the tiny model."""
IDLE_S = 3.0


def measure_task(task: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All precisions of one model, every way."""
    precisions = ["tiny"] if task == "tiny" else options.precisions
    archives = _pack(task, precisions, options, work)
    names = [f"{precision} {way}" for precision in precisions for way in options.ways]
    with start_open(archives, work) as plain, start_protected(archives, work / "protected") as protected:
        if task == "tiny":
            measure = _tiny(plain, protected, work, options.seconds)
        else:
            measure = _heavy(task, precisions, plain, protected, work, options)
        idle = _idle(plain, protected)
        rounds = run_in_turn(names, options.rounds, measure)
    return {"rounds": rounds, "idle_cores": idle, "precisions": precisions}


def _pack(task: str, precisions: list[str], options: argparse.Namespace, work: Path) -> list[Path]:
    if task == "tiny":
        work.mkdir(parents=True, exist_ok=True)
        pack_tiny(work / "tiny.mar", 1, work / "tiny.json")
        return [work / "tiny.mar"]
    forms = ensure_forms(task, options.environments)
    return [pack_heavy(task, precision, forms, work) for precision in precisions]


def _heavy(
    task: str,
    precisions: list[str],
    plain: Open,
    protected: Protected,
    work: Path,
    options: argparse.Namespace,
) -> Callable[[str], dict[str, float]]:
    asking = Asking(work, task, callers=options.callers, seconds=options.seconds)
    for precision in precisions:
        asking.warm(plain, f"{task}-{precision}", min(options.seconds, 4.0))

    def measure(name: str) -> dict[str, float]:
        precision, way = name.split()
        model = f"{task}-{precision}"
        found = asking.open(plain, model) if way == "open" else getattr(asking, way)(protected, model)
        return found.figures() | {"callers_cores": found.processor_s / found.took_s}

    for name in [f"{precision} {way}" for precision in precisions for way in options.ways[1:]]:
        asking.shorter(2.0, measure, name)
    return measure


def _tiny(plain: Open, protected: Protected, work: Path, seconds: float) -> Callable[[str], dict[str, float]]:
    body, sealed = work / "body", work / "sealed"
    body.write_text(BODY)

    def measure(name: str) -> dict[str, float]:
        way = name.split()[1]
        if way == "ohttp":
            seal_bodies(protected, sealed, int(SEALED_PER_S * seconds))
            url = protected.over_ohttp("tiny", BODY).url
            load = run_wrk(
                url, sealed, connections=TINY_CALLERS, seconds=seconds, content_type=SEALED_TYPE, once=True
            )
        else:
            url = f"http://127.0.0.1:{plain.port}/predictions/tiny"
            url = protected.over_tls("tiny", BODY).url if way == "tls" else url
            load = run_wrk(url, body, connections=TINY_CALLERS, seconds=seconds)
        if load.failed:
            raise SystemExit(f"{name}: {load.failed} of {load.requests} requests failed")
        return {"per_s": load.requests_per_s, "p50_ms": load.p50_ms, "p99_ms": load.p99_ms, "failed": 0}

    for way in WAYS:
        measure(f"tiny {way}")
    return measure


def _idle(plain: Open, protected: Protected) -> float:
    """Cores that both servers use while nobody asks."""
    before = processor_s(plain.process.pid) + processor_s(protected.process.pid)
    time.sleep(IDLE_S)
    return (processor_s(plain.process.pid) + processor_s(protected.process.pid) - before) / IDLE_S


def compare(rounds: Rounds, precisions: list[str], ways: list[str]) -> dict[str, float]:
    """Protected against open, and INT8 against FP32 protected."""
    found = {}
    for precision in precisions:
        for way in ways:
            if way != "open" and "open" in ways:
                found[f"{precision} {way}/open"] = rounds.ratio(
                    f"{precision} {way}", f"{precision} open", "per_s"
                )
    if {"fp32", "int8"} <= set(precisions):
        for way in ways:
            found[f"int8/fp32 {way}"] = rounds.ratio(f"int8 {way}", f"fp32 {way}", "per_s")
    return {name: round(value, 4) for name, value in found.items()}


def render(found: dict[str, dict[str, Any]], ways: list[str]) -> str:
    """The tables for people."""
    parts = []
    for task, result in found.items():
        rounds, ratios = result["rounds"], result["ratios"]
        rows = []
        for precision in result["precisions"]:
            cells = []
            for way in ways:
                rate, p50, p99 = (
                    rounds.median(f"{precision} {way}", figure) for figure in ("per_s", "p50_ms", "p99_ms")
                )
                cells.append(f"{rate:,.1f} ({p50:,.1f} / {p99:,.1f})")
                if way != "open" and "open" in ways:
                    cells.append(f"{ratios[f'{precision} {way}/open']:.3f}")
            rows.append([precision.upper() if precision != "tiny" else "-", *cells])
        head = ["Precision"]
        for way in ways:
            head += [way] if way == "open" or "open" not in ways else [way, f"{way} / open"]
        parts.append(
            f"**{TITLES[task]}**: requests per second (p50 / p99 in ms)\n\n{render_table(head, rows)}"
        )
        gains = [f"{way} {ratios[f'int8/fp32 {way}']:.2f}" for way in ways if f"int8/fp32 {way}" in ratios]
        if gains:
            parts.append(f"INT8 against FP32: {', '.join(gains)}.")
    return "\n\n".join(parts)


def plots(found: dict[str, dict[str, Any]], ways: list[str]) -> dict[str, str]:
    """One plot for each model."""
    drawn = {}
    for task, result in found.items():
        groups = {
            precision.upper(): [result["rounds"].median(f"{precision} {way}", "per_s") for way in ways]
            for precision in result["precisions"]
        }
        title = f"{TITLES[task]}: requests per second"
        drawn[f"protection-{task}"] = render_bars(Bars(title, list(ways), groups))
    return drawn


def main() -> int:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--tasks", default=",".join(("tiny", *TASKS)))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--callers", type=int, default=16)
    options = parser.parse_args()
    options.precisions, options.ways = options.precisions.split(","), options.ways.split(",")
    results = Results("bench_protection")
    found: dict[str, dict[str, Any]] = {}
    for task in options.tasks.split(","):
        with tempfile.TemporaryDirectory(prefix="bench-protection-") as folder:
            found[task] = measure_task(task, options, Path(folder))
        result = found[task]
        result["ratios"] = compare(result["rounds"], result["precisions"], options.ways)
    data = {
        task: {
            "medians": result["rounds"].medians(),
            "runs": result["rounds"].runs(),
            "ratios": result["ratios"],
            "idle_cores": round(result["idle_cores"], 4),
        }
        for task, result in found.items()
    }
    text = render(found, options.ways)
    drawn = plots(found, options.ways)
    text += "\n\n" + "\n".join(f"![{name}](assets/{name}.svg)" for name in drawn) if options.page else ""
    results.publish(options, {"results": data}, text, drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Scaling on paper: a queueing model, checked on one and two cores, and what it expects of 12 workers x 4.

Usage: python benchmarks/bench_scaling.py [--tasks resnet50,bert-large] [--precisions fp32,int8]
           [--rounds 3] [--seconds 8] [--json] [--page]

1. Costs: the engine in process on one core and on two, processor seconds of the frontend for each request,
   open and over OHTTP, and of the callers.
2. Check: the model (`rig/queueing.py`) predicts requests per second for 1, 4 and 16 callers on one and two
   cores; the server is run there (taskset) and the two are put beside each other.
3. Expectation: the machine of the Trusted TorchServe article, 12 workers of 4 cores, with 192 callers and
   1 to 4 frontend processes. Assumptions are in `rig/scaling.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rig.forms import TASKS, ensure_forms
from rig.limit import start_limit
from rig.options import Results, make_parser
from rig.page import render_table
from rig.protected import Protected, Stage
from rig.scaling import Costs, predict_here, predict_machine
from rig.servers import own_processor_s
from rig.ways import Asking, Open, pack_heavy, start_open

CALLERS = (1, 4, 16)
ARTICLE = {"workers": 12, "cores_each": 4}
FRONTENDS = (1, 2, 4)
WARM_S = 3.0
WAYS = ("open", "ohttp")


def measure_task(task: str, precision: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Costs, measured and predicted rates of one model."""
    forms = ensure_forms(task, options.environments)
    archive = pack_heavy(task, precision, forms, work)
    engine: dict[int, list[float]] = {1: [], 2: []}
    measured: dict[tuple[str, int, int], list[float]] = {}
    spent: dict[str, list[float]] = {"open": [], "ohttp": [], "callers": []}
    cores = sorted(os.sched_getaffinity(0))
    stage = Stage(work / "protected")
    with stage.broker([archive]):
        for number in (1, min(2, len(cores))):
            chosen = ",".join(map(str, cores[:number]))
            with start_limit(task, forms, precision, work, cores=chosen) as limit:
                engine[number] += [limit.run(options.seconds)["processor_s"] for _ in range(options.rounds)]
            asking = Asking(work, task, callers=1, seconds=options.seconds)
            with _servers(archive, work, stage, chosen) as (plain, protected):
                asking.warm(plain, archive.stem, WARM_S)
                asking.more_callers(max(CALLERS))
                asking.shorter(WARM_S, lambda name: asking.ohttp(protected, name), archive.stem)  # noqa: B023
                for _ in range(options.rounds):
                    for callers in CALLERS:
                        asking.more_callers(callers)
                        for way, server in (("open", plain), ("ohttp", protected)):
                            before = own_processor_s(server.process.pid)
                            found = getattr(asking, way)(server, archive.stem)
                            measured.setdefault((way, number, callers), []).append(found.per_s)
                            used = own_processor_s(server.process.pid) - before
                            spent[way].append(used / found.requests)
                            spent["callers"].append(found.processor_s / found.requests)
    one, two = statistics.median(engine[1]), statistics.median(engine[2] or engine[1])  # seconds of a core
    middle = {name: statistics.median(values) for name, values in spent.items()}
    interference = max(1.0, two / one)
    costs = {way: Costs(one, middle[way], middle["callers"], interference) for way in WAYS}
    checks = [
        {
            "way": way,
            "cores": number,
            "callers": callers,
            "measured_per_s": statistics.median(values),
            "predicted_per_s": predict_here(costs[way], number, callers).per_s,
        }
        for (way, number, callers), values in sorted(measured.items())
    ]
    return {
        "costs_ms": {
            "engine": one * 1e3,
            "frontend_open": middle["open"] * 1e3,
            "frontend_ohttp": middle["ohttp"] * 1e3,
            "callers": middle["callers"] * 1e3,
            "interference": interference,
        },
        "checks": checks,
        "error": statistics.median(abs(c["predicted_per_s"] / c["measured_per_s"] - 1) for c in checks),
        "machine": expect(costs),
    }


def expect(costs: dict[str, Costs]) -> list[dict[str, Any]]:
    """The article's machine, with one to four frontends, cores as fast as those measured."""
    rows = []
    callers = 4 * ARTICLE["workers"] * ARTICLE["cores_each"]
    for frontends in FRONTENDS:
        found = {
            way: predict_machine(costs[way], frontends=frontends, callers=callers, **ARTICLE) for way in WAYS
        }
        rows.append(
            {
                "frontends": frontends,
                "open_per_s": found["open"].per_s,
                "ohttp_per_s": found["ohttp"].per_s,
                "ratio": found["ohttp"].per_s / found["open"].per_s,
                "response_ms": found["ohttp"].response_s * 1e3,
                "bottleneck": found["ohttp"].bottleneck,
                "gain": found["ohttp"].per_s * costs["ohttp"].engine_s,
            }
        )
    return rows


@contextlib.contextmanager
def _servers(archive: Path, work: Path, stage: Stage, cores: str) -> Iterator[tuple[Open, Protected]]:
    with start_open([archive], work, cores=cores) as plain, stage.server(cores=cores) as protected:
        yield plain, protected


def render(data: dict[str, dict[str, Any]]) -> str:
    """The tables for people."""
    costs, checks, machine = [], [], []
    for name, found in data.items():
        each = found["costs_ms"]
        cells = [each[key] for key in ("engine", "frontend_open", "frontend_ohttp", "callers")]
        costs.append([name, *(f"{cell:.2f}" for cell in cells), f"{each['interference']:.2f}"])
        for row in found["checks"]:
            ratio = row["predicted_per_s"] / row["measured_per_s"]
            shown = [f"{row['measured_per_s']:.1f}", f"{row['predicted_per_s']:.1f}", f"{ratio:.2f}"]
            checks.append([name, row["way"], str(row["cores"]), str(row["callers"]), *shown])
        for row in found["machine"]:
            rates = [f"{row[key]:,.0f}" for key in ("open_per_s", "ohttp_per_s")]
            rest = [
                f"{row['ratio']:.3f}",
                f"{row['response_ms']:,.0f}",
                row["bottleneck"],
                f"{row['gain']:.1f}",
            ]
            machine.append([name, str(row["frontends"]), *rates, *rest])
    parts = [
        render_table(
            ["ms of one core", "Engine", "Frontend, open", "Frontend, OHTTP", "Callers", "Interference"],
            costs,
        ),
        render_table(["Check", "Way", "Cores", "Callers", "Measured, /s", "Predicted, /s", "Ratio"], checks),
        render_table(
            [
                "12 workers x 4 cores, 192 callers",
                "Frontends",
                "Open, /s",
                "OHTTP, /s",
                "Ratio",
                "Mean answer, ms",
                "Busiest",
                "Times one core here",
            ],
            machine,
        ),
    ]
    return "\n\n".join(parts)


def main() -> int:
    """Measure, predict and print."""
    parser = make_parser(__doc__, seconds=8.0)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--precisions", default="fp32,int8")
    options = parser.parse_args()
    results = Results("bench_scaling")
    data = {}
    for task in options.tasks.split(","):
        for precision in options.precisions.split(","):
            with tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder:
                data[f"{task} {precision.upper()}"] = measure_task(task, precision, options, Path(folder))
    results.publish(options, {"results": data}, render(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())

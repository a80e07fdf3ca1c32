"""Against peers on heavy models: each as its users run it, and mosec with the same OpenVINO model as ours.

Usage: python benchmarks/bench_peers.py [--tasks resnet50,bert-large] [--peers torchserve,mosec,...]
           [--callers 16] [--rounds 3] [--seconds 10] [--json] [--page]

TorchServe 0.12, mosec 0.9.8, LitServe 0.2.19 and MLServer 1.7.1 run eager PyTorch, one worker with all
cores; `mosec-openvino` runs Cloister's INT8 model by the same code, and `mosec-openvino-2` does so
in two workers of one core each (`rig/heavy_servers.py`). Cloister is protected: a sealed INT8 model, requests
sealed ahead (OHTTP). All servers of a task are up, one is loaded at a time, in turn; what they use while
nobody asks is in the result. Ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rig.forms import TASKS, ensure_forms
from rig.heavy_servers import EAGER, SAME_ENGINE, start_heavy
from rig.options import Results, make_parser
from rig.page import render_table
from rig.plot import Bars, render_bars
from rig.protected import start_protected
from rig.rounds import Rounds, run_in_turn
from rig.servers import Running, processor_s
from rig.ways import Asking, pack_heavy, start_open

OURS = "cloister, protected INT8"
WARM_S = 4.0
IDLE_S = 3.0
TITLES = {"resnet50": "ResNet-50 from JPEG", "bert-large": "BERT-Large, 128 tokens"}


def measure_task(task: str, peers: list[str], options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every server of one task, in turn."""
    forms = ensure_forms(task, options.environments)
    archive = pack_heavy(task, "int8", forms, work)
    asking = Asking(work, task, callers=options.callers, seconds=options.seconds)
    with start_open([archive], work) as plain:
        asking.warm(plain, archive.stem, min(options.seconds, WARM_S))
    with contextlib.ExitStack() as stack:
        protected = stack.enter_context(start_protected([archive], work / "protected"))
        running: dict[str, Running] = {}
        for name in peers:
            print(f"starting {name}", file=sys.stderr, flush=True)
            running[name] = stack.enter_context(start_heavy(name, task, forms, options.environments, work))

        def measure(name: str) -> dict[str, float]:
            if name == OURS:
                return asking.ohttp(protected, archive.stem).figures()
            return asking.peer(running[name]).figures()

        names = [OURS, *peers]
        for name in names:
            asking.shorter(WARM_S, measure, name)
        pids = {OURS: protected.process.pid, **{name: server.process.pid for name, server in running.items()}}
        before = {name: processor_s(pid) for name, pid in pids.items()}
        time.sleep(IDLE_S)
        idle = {name: round((processor_s(pid) - before[name]) / IDLE_S, 4) for name, pid in pids.items()}
        rounds = run_in_turn(names, options.rounds, measure)
    return {"rounds": rounds, "idle_cores": idle, "names": names}


def render(found: dict[str, dict[str, Any]]) -> str:
    """The tables for people."""
    parts = []
    for task, result in found.items():
        rounds: Rounds = result["rounds"]
        rows = []
        for name in result["names"]:
            rate, p50, p99 = (rounds.median(name, figure) for figure in ("per_s", "p50_ms", "p99_ms"))
            ratio = f"{rounds.ratio(OURS, name, 'per_s'):.2f}" if name != OURS else ""
            rows.append([name, f"{rate:,.2f}", f"{p50:,.0f} / {p99:,.0f}", ratio])
        head = [TITLES[task], "Requests/s", "p50 / p99, ms", "Cloister is faster by"]
        parts.append(render_table(head, rows))
    return "\n\n".join(parts)


def main() -> int:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--peers", default=",".join((*EAGER, *SAME_ENGINE)))
    parser.add_argument("--callers", type=int, default=16)
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name]
    results = Results("bench_peers")
    found: dict[str, dict[str, Any]] = {}
    for task in options.tasks.split(","):
        with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
            found[task] = measure_task(task, peers, options, Path(folder))
    data, drawn = {}, {}
    for task, result in found.items():
        rounds, names = result["rounds"], result["names"]
        data[task] = {
            "medians": rounds.medians(),
            "runs": rounds.runs(),
            "ratios": {name: round(rounds.ratio(OURS, name, "per_s"), 4) for name in names if name != OURS},
            "idle_cores": result["idle_cores"],
        }
        groups = {name: [rounds.median(name, "per_s")] for name in names}
        drawn[f"peers-{task}"] = render_bars(Bars(f"{TITLES[task]}: requests per second", ["all"], groups))
    text = render(found)
    if options.page:
        text += "\n\n" + "\n".join(f"![{name}](assets/{name}.svg)" for name in drawn)
    results.publish(options, {"results": data}, text, drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())

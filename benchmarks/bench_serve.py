"""Predictions per second and latency beside other model servers, and what must not hurt other callers.

Usage: python benchmarks/bench_serve.py [--peers mosec,torchserve,litserve,mlserver,fastapi] [--rounds 3]
           [--seconds 4] [--cases speed,protected,poison,kill,huge,slow] [--json] [--page]

Every server has the same model of a few microseconds (`peers/tiny.py`), one worker, JSON, plain HTTP, and is
loaded by wrk from the same machine. Servers run one at a time, in turn, `--rounds` times; figures are
medians, ratios medians of the rounds' ratios. Each peer is installed into an environment of its own on first
use, below `--environments`. wrk is Debian's (apt-get install wrk); TorchServe needs Java 17.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from rig import faults
from rig.options import Results, make_parser
from rig.page import render_table
from rig.protected import SEALED_TYPE, seal_bodies, start_protected_tiny
from rig.servers import Running
from rig.tiny_servers import BODY, NAMES, start
from rig.wrk import Load, run_wrk

CASES = ("speed", "protected", "poison", "kill", "huge", "slow")
NO_BATCHING = frozenset({"fastapi"})
SEALED_PER_S = 12_000
"""More sealed requests than this per second are not sent."""
FIGURES = ("requests_per_s", "p50_ms", "p99_ms")
COLUMNS = ("c=1", "c=64", "c=1 batching", "c=64 batching")
Samples = dict[str, list[float]]


class Report:
    """Samples by figure, and results of single runs by case."""

    def __init__(self) -> None:
        self.samples: defaultdict[str, Samples] = defaultdict(lambda: defaultdict(list))
        self.cases: dict[str, dict[str, Any]] = {}

    def add(self, server: str, case: str, load: Load) -> None:
        """Note one run of wrk."""
        for figure in FIGURES:
            self.samples[server][f"{case} {figure}"].append(getattr(load, figure))
        self.samples[server][f"{case} failed"].append(load.failed)
        print(
            f"  {server:<12} {case:<18} {load.requests_per_s:9.0f}/s  p50 {load.p50_ms:7.3f} ms",
            file=sys.stderr,
        )

    def ratios(self) -> dict[tuple[str, str], dict[str, float]]:
        """Requests per second against each other server's in the same round: the median of the rounds."""
        found: dict[tuple[str, str], dict[str, float]] = {}
        pairs = [("cloister", other) for other in self.samples if other in NAMES]
        pairs += [(way, other) for way in ("TLS", "OHTTP") for other in ("cloister", "torchserve")]
        for server, other in pairs:
            for column in COLUMNS:
                runs, against = (
                    self.samples.get(name, {}).get(f"{column} requests_per_s") for name in (server, other)
                )
                if runs and against:
                    each = [run / base for run, base in zip(runs, against, strict=True)]
                    found.setdefault((server, other), {})[column] = round(statistics.median(each), 3)
        return found

    def medians(self) -> dict[str, dict[str, float]]:
        """The middle of each figure's runs."""
        return {
            server: {name: round(statistics.median(values), 3) for name, values in figures.items()}
            for server, figures in self.samples.items()
        }


def measure_speed(report: Report, server: Running, body: Path, label: str, seconds: float) -> None:
    """One caller, then 64, after a short warm-up."""
    run_wrk(server.url, body, connections=16, seconds=1)
    name = server.name
    report.add(name, f"c=1{label}", run_wrk(server.url, body, connections=1, seconds=seconds))
    report.add(name, f"c=64{label}", run_wrk(server.url, body, connections=64, seconds=seconds))


def measure_protected(report: Report, work: Path, batching: bool, seconds: float) -> None:
    """Attested TLS with kept connections, and OHTTP with requests that were sealed ahead."""
    label = " batching" if batching else ""
    with (
        tempfile.TemporaryDirectory(dir=work) as folder,
        start_protected_tiny(batching=batching, work=Path(folder)) as server,
    ):
        body = Path(folder, "body")
        body.write_text(BODY)
        measure_speed(report, server.over_tls("tiny", BODY), body, label, seconds)
        url = server.over_ohttp("tiny", BODY).url
        for connections in (1, 64):
            sealed = Path(folder, "sealed")
            seal_bodies(server, sealed, int(SEALED_PER_S * seconds) // (1 if connections > 1 else 4))
            load = run_wrk(
                url,
                sealed,
                connections=connections,
                seconds=seconds,
                content_type=SEALED_TYPE,
                once=True,
            )
            report.add("OHTTP", f"c={connections}{label}", load)


def measure_faults(report: Report, server: Running, body: Path, cases: list[str]) -> None:
    """What must not hurt other callers."""
    tests = {
        "poison": lambda: faults.poison(server),
        "huge": lambda: faults.huge_body(server),
        "slow": lambda: faults.slow_callers(server, body),
        "kill": lambda: faults.kill_worker(server, body),
    }
    for case, test in tests.items():
        if case in cases:
            found = test()
            report.cases.setdefault(case, {})[server.name] = found
            print(f"  {server.name:<12} {case}: {found}", file=sys.stderr)


def render(report: Report) -> str:
    """Medians as a table for people, ratios of pairs below, then what the faults did."""
    medians = report.medians()
    rows = [[server, *(_cell(figures, column) for column in COLUMNS)] for server, figures in medians.items()]
    for (server, other), found in report.ratios().items():
        cells = [f"{found[column]:.2f}" if column in found else "-" for column in COLUMNS]
        rows.append([f"{server} / {other}", *cells])
    parts = [render_table(["Requests/s (p50 / p99 ms)", *COLUMNS], rows)] if rows else []
    lines = []
    for case, results in report.cases.items():
        for server, found in results.items():
            shown = (f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
            lines.append([case, server, ", ".join(shown)])
    if lines:
        parts.append(render_table(["Case", "Server", "Found"], lines))
    return "\n\n".join(parts)


def _cell(figures: dict[str, float], column: str) -> str:
    if f"{column} requests_per_s" not in figures:
        return "-"
    rate, p50, p99 = (figures[f"{column} {figure}"] for figure in FIGURES)
    return f"{rate:,.0f} ({p50:.2f} / {p99:.2f})"


def main() -> int:
    """Measure and print."""
    parser = make_parser(__doc__, seconds=4.0)
    parser.add_argument("--peers", default="mosec", help=f"comma-separated, of {', '.join(NAMES)}; or none")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--fault-peers", default="", help="peers that the faults are tried on too")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not there: apt-get install wrk")
    peers = [name for name in options.peers.split(",") if name and name != "none"]
    cases = [name for name in options.cases.split(",") if name]
    environments = options.environments.resolve()
    environments.mkdir(parents=True, exist_ok=True)
    report, results = Report(), Results("bench_serve")
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
        work = Path(folder)
        for turn in range(options.rounds):
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
            if "speed" in cases:
                _speed_round(report, peers, environments, work, options.seconds)
            if "protected" in cases:
                for batching in (False, True):
                    measure_protected(report, work, batching, options.seconds)
        for name in ("cloister", *(peer for peer in options.fault_peers.split(",") if peer)):
            if {"poison", "kill", "huge", "slow"} & set(cases):
                with start(name, batching=True, environments=environments, work=work) as server:
                    measure_faults(report, server, _write_body(work, server), cases)
    ratios = {f"{ours} / {other}": found for (ours, other), found in report.ratios().items()}
    data = {"medians": report.medians(), "ratios": ratios, "cases": report.cases}
    results.publish(options, data, render(report))
    return 0


def _speed_round(report: Report, peers: list[str], environments: Path, work: Path, seconds: float) -> None:
    for batching in (False, True):
        for name in ("cloister", *peers):
            if batching and name in NO_BATCHING:
                continue
            with start(name, batching=batching, environments=environments, work=work) as server:
                measure_speed(
                    report, server, _write_body(work, server), " batching" if batching else "", seconds
                )


def _write_body(work: Path, server: Running) -> Path:
    body = work / f"{server.name}.body"
    body.write_text(str(server.body))
    return body


if __name__ == "__main__":
    sys.exit(main())

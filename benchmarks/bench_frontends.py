"""What frontend processes cost and save: requests per second, and processor time of each process.

Usage: python benchmarks/bench_frontends.py [--counts 1,2] [--rounds 3] [--seconds 4] [--connections 64]
           [--json]

The tiny model, JSON, one worker, wrk on the same machine; plain HTTP and TLS, without batches and with (16).
Servers run one at a time, in turn; figures are medians. A frontend process pays where the core is what a
server waits for and cores are idle. On a machine that has none, processor time still tells: the core's
microseconds for a request bound what any number of frontends can reach.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rig.servers import Running, free_port, spawn, stop
from rig.tiny_servers import BODY, HERE, pack_tiny
from rig.wrk import run_wrk

from cloister.serve.identity import make_keys

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """One server."""

    frontends: int
    tls: bool
    batch_size: int

    @property
    def name(self) -> str:
        return f"{'TLS' if self.tls else 'HTTP'}{', batches' if self.batch_size > 1 else ''}"


@contextlib.contextmanager
def start(case: Case, work: Path) -> Iterator[Running]:
    """The server of a case."""
    store = work / f"store-{case.batch_size}"
    store.mkdir(exist_ok=True)
    pack_tiny(store / "tiny.mar", case.batch_size, work / "model.yaml")
    port = free_port()
    flags = {
        "serve.mode": "open",
        "serve.model_store": str(store),
        "serve.http_port": port,
        "serve.frontends": case.frontends,
    }
    if case.tls:
        pair = make_keys("127.0.0.1").pem_pair()
        for name, pem in (("private_key", pair.key), ("certificate", pair.chain)):
            (work / f"{name}.pem").write_bytes(pem)
            flags[f"serve.{name}"] = str(work / f"{name}.pem")
        flags["serve.inference_address"] = f"https://127.0.0.1:{port}"
        flags["serve.load_models"] = ["tiny=tiny.mar"]
        flags["serve.default_workers"] = 1
    url = f"{'https' if case.tls else 'http'}://127.0.0.1:{port}/predictions/tiny"
    process = spawn(
        [sys.executable, str(HERE / "cloister_app.py"), json.dumps(flags)], work / "log", cwd=work
    )
    try:
        wait_ready(url, process, work / "log")
        yield Running("cloister", url, process, BODY, work / "log")
    finally:
        stop(process)


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the first answer."""
    until = time.monotonic() + 120
    request = urllib.request.Request(url, BODY.encode(), {"content-type": "application/json"})
    context = ssl._create_unverified_context()  # a key of this run, on loopback
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10, context=context):
            return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not answer: {log.read_text()[-3000:]}")


def processor_s(pid: int) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def roles(core: int) -> dict[int, str]:
    """The server's processes."""
    found = {core: "core"}
    for child in Path(f"/proc/{core}/task/{core}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        found[int(child)] = "frontends" if b"frontends.main" in command else "worker"
    return found


def measure(case: Case, work: Path, seconds: float, connections: int) -> dict[str, float]:
    """One run: rate, latency, and microseconds of each kind of process for a request."""
    with start(case, work) as running:
        body = work / "body"
        body.write_text(BODY)
        run_wrk(running.url, body, connections=16, seconds=1)
        processes = roles(running.process.pid)
        before = {pid: processor_s(pid) for pid in processes}
        load = run_wrk(running.url, body, connections=connections, seconds=seconds)
        spent: defaultdict[str, float] = defaultdict(float)
        for pid, role in processes.items():
            spent[role] += processor_s(pid) - before[pid]
        figures = {f"{role} us": s / load.requests * 1e6 for role, s in spent.items()}
        return {"per_s": load.requests_per_s, "p99_ms": load.p99_ms, "failed": load.failed, **figures}


def main() -> None:
    """Run all cases, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--counts", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts = [int(text) for text in options.counts.split(",")]
    cases = [Case(n, tls, size) for tls in (False, True) for size in (1, 16) for n in counts]
    samples: dict[Case, defaultdict[str, list[float]]] = {case: defaultdict(list) for case in cases}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-") as folder:
        for _ in range(options.rounds):
            for case in cases:
                for name, value in measure(case, Path(folder), options.seconds, options.connections).items():
                    samples[case][name].append(value)
    result = [
        {
            "case": case.name,
            "frontends": case.frontends,
            **{name: round(statistics.median(values), 1) for name, values in samples[case].items()},
        }
        for case in cases
    ]
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for row in result:
        figures = "  ".join(f"{name} {value}" for name, value in row.items() if name != "case")
        print(f"{row['case']:<15} {figures}")


if __name__ == "__main__":
    main()

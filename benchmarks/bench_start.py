"""Start: BERT-Large sealed against plain; key release, verification of a quote, a client's first answer.

Usage: python benchmarks/bench_start.py [--task bert-large] [--precision fp32] [--rounds 3]
           [--releases 200] [--json] [--page]

*Load*: from the start of the server's process to its first right answer, open with a plain archive and
protected with a sealed one, whose broker is up already; in turn, the file read once before (so that no disk
is in it), and Cloister's byte code there, as pip leaves it. Memory is the peak in that time
(`rig/memory.py`). *Release*: one client, one after the other (`bench_release.py`). *First answer*: a new
`cloister.Client` verifies the service, seals and opens; the next ones use what it verified. The TEE is
simulated: real quotes and signatures, no hardware.
"""

from __future__ import annotations

import compileall
import http.client
import ssl
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench_release import Broker, run, verification_ms
from rig.forms import ensure_forms, make_body
from rig.heavy_servers import CONTENT_TYPES
from rig.memory import PeakWatch, read_shared
from rig.options import Results, make_parser
from rig.page import render_table
from rig.protected import START_S, Stage
from rig.rounds import run_in_turn
from rig.servers import processor_s, spawn, stop
from rig.tiny_servers import pack_tiny
from rig.ways import open_command, pack_heavy

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.measure import installed_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.client.session import Client

MIB = 2**20
FIRST_CLIENTS = 20


def wait_first(port: int, model: str, body: bytes, content_type: str, process: Any, *, tls: bool) -> None:
    """Ask until the answer is right."""
    # Made once: reading the system's roots takes 20 ms, and a core would do little else until the port opens.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if tls:
                connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=120, context=context)
            else:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("POST", f"/predictions/{model}", body, {"content-type": content_type})
            status = connection.getresponse().status
            connection.close()
            if status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.02)
    raise SystemExit(f"{model} did not start")


def measure_load(task: str, precision: str, rounds: int, environments: Path, work: Path) -> dict[str, Any]:
    """Sealed and plain, in turn."""
    forms = ensure_forms(task, environments)
    archive = pack_heavy(task, precision, forms, work)
    stage = Stage(work / "protected")
    body, content_type = make_body(task), CONTENT_TYPES[task]
    with stage.broker([archive]):

        def measure(name: str) -> dict[str, float]:
            sealed = name == "sealed"
            command, port = stage.command() if sealed else open_command([archive], work)
            _read_once(work)
            before = read_shared()
            began = time.perf_counter()
            process = spawn(command, work / f"{name}.log")
            try:
                with PeakWatch(process.pid, before) as watch:
                    wait_first(port, archive.stem, body, content_type, process, tls=sealed)
                    took, used = time.perf_counter() - began, processor_s(process.pid)
                    time.sleep(1)
            finally:
                stop(process)
            parts = {part: getattr(watch.peak, part) / MIB for part in ("private", "files", "shared")}
            return {
                "first_answer_s": took,
                "processor_s": used,
                "peak_mib": watch.peak.total / MIB,
                "after_mib": watch.last.total / MIB,
                **parts,
            }

        measure("sealed")  # Python's own files are read, too
        found = run_in_turn(["plain", "sealed"], rounds, measure)
    ratios = {
        figure: round(found.ratio("sealed", "plain", figure), 4)
        for figure in ("first_answer_s", "processor_s", "peak_mib", "after_mib")
    }
    return {"medians": found.medians(), "runs": found.runs(), "ratios": ratios}


def measure_first_answers(work: Path) -> dict[str, float]:
    """New clients against a protected server that is up: milliseconds to the first answer, to later ones."""
    work.mkdir()
    pack_tiny(work / "tiny.mar", 1, work / "model.yaml")
    stage = Stage(work)
    first, second = [], []
    with stage.broker([work / "tiny.mar"]), stage.server() as server:
        values = ReferenceValues.from_toml(work / "reference.toml")
        for _ in range(FIRST_CLIENTS):
            url = f"https://127.0.0.1:{server.https_port}"
            with Client(url, reference_values=values, roots=[stage.platform.root]) as client:
                times = []
                for _ in range(3):
                    began = time.perf_counter()
                    client.predict("tiny", [0.1, 0.2, 0.3, 0.4]).json()
                    times.append((time.perf_counter() - began) * 1e3)
            first.append(times[0])
            second.append(times[2])
    return {"first_ms": statistics.median(first), "next_ms": statistics.median(second)}


def measure_release(releases: int) -> dict[str, float]:
    """One release after the other, and the verification of a quote alone."""
    with tempfile.TemporaryDirectory() as folder:
        platform = SimulatedPlatform.create(Path(folder) / "platform", datetime.now(UTC))
        with Broker(Path(folder), platform) as broker:
            found = run(broker, 1, releases, 0)
    steps = {f"{step}_ms": value for step, value in found["steps_p50_ms"].items()}
    return {"release_ms": found["p50_ms"], **steps, "verification_ms": verification_ms(platform)}


def _read_once(folder: Path) -> None:
    """Bring the archives and containers into the page cache."""
    for path in (*folder.rglob("*.mar"), *folder.rglob("*.sealed"), *folder.rglob("*.cloister")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def main() -> int:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--task", default="bert-large")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--releases", type=int, default=200)
    options = parser.parse_args()
    results = Results("bench_start")
    compileall.compile_dir(installed_package(), quiet=1)
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        work = Path(folder)
        small = measure_release(options.releases) | measure_first_answers(work / "tiny")
        load = measure_load(options.task, options.precision, options.rounds, options.environments, work)
    plain, sealed, ratios = load["medians"]["plain"], load["medians"]["sealed"], load["ratios"]
    rows = [
        [
            "start to first answer, s",
            f"{plain['first_answer_s']:.2f}",
            f"{sealed['first_answer_s']:.2f}",
            f"{ratios['first_answer_s']:.3f}",
        ],
        [
            "processor time for it, s",
            f"{plain['processor_s']:.2f}",
            f"{sealed['processor_s']:.2f}",
            f"{ratios['processor_s']:.3f}",
        ],
        [
            "peak memory, MiB",
            f"{plain['peak_mib']:,.0f}",
            f"{sealed['peak_mib']:,.0f}",
            f"{ratios['peak_mib']:.3f}",
        ],
        [
            "memory after that, MiB",
            f"{plain['after_mib']:,.0f}",
            f"{sealed['after_mib']:,.0f}",
            f"{ratios['after_mib']:.3f}",
        ],
    ]
    text = render_table([f"{options.task} {options.precision.upper()}", "Plain", "Sealed", "Ratio"], rows)
    text += "\n\n" + render_table(
        ["Once", "Median, ms"],
        [
            ["release of a key: challenge, attestation, resource", f"{small['release_ms']:.1f}"],
            ["verification of a quote alone", f"{small['verification_ms']:.2f}"],
            ["a new client's first answer, verified and sealed", f"{small['first_ms']:.1f}"],
            ["its next ones", f"{small['next_ms']:.2f}"],
        ],
    )
    results.publish(options, {"load": load, "once": small}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Predictions per second and latency over gRPC, beside TorchServe.

Usage: python benchmarks/bench_grpc.py [--callers 1,64] [--rounds 3] [--seconds 5] [--alone]
           [--environments DIR] [--json]

Both servers have the same archive with the tiny model, one worker, and get the same bytes of
``InferenceAPIsService/Predictions`` from h2load (Debian: apt-get install nghttp2-client). A caller is a
connection with one call at a time. A load generator in Python would be slower than either server. One answer
of each server is read by a gRPC client before it is loaded. TorchServe is installed into an environment of
its own on first use and needs Java 17; ``--alone`` leaves it out.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
from rig.environments import make_environment
from rig.options import Results, make_parser
from rig.page import render_table
from rig.rounds import run_in_turn
from rig.servers import Launch, free_port, launched
from rig.tiny_servers import APPS, BODY, HERE, torchserve

from cloister.serve.grpc.messages import INFERENCE, message
from cloister.serve.pack import pack_archive

METHOD = f"/{INFERENCE}.InferenceAPIsService/Predictions"
WARM_S = 2.0


@contextlib.contextmanager
def started(name: str, environments: Path, work: Path) -> Iterator[int]:
    """The gRPC port of a server that answers rightly."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "store").mkdir(parents=True)
    archive = folder / "store" / "tiny.mar"
    files = [APPS / "tiny.py"]
    pack_archive(archive, name="tiny", version="1.0", handler=APPS / "grpc_handler.py", extra_files=files)
    port = free_port()
    if name == "cloister":
        number = free_port()
        flags = {"serve.mode": "open", "serve.model_store": str(archive.parent)}
        flags |= {"serve.http_port": port, "serve.grpc_port": number}
        launch = Launch([sys.executable, str(HERE / "cloister_app.py"), json.dumps(flags)], "", "")
    else:
        version: dict[str, object] = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1}
        launch = torchserve(str(make_environment(name, environments)), folder, port, archive, version)
        lines = dict(line.split("=", 1) for line in (folder / "config.properties").read_text().splitlines())
        number = int(lines["grpc_inference_port"])
    form = "multipart/form-data; boundary=b"
    body = f'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n{BODY}\r\n--b--\r\n'
    asked = Launch(
        launch.command, "/predictions/tiny", body, {"content-type": form}, environment=launch.environment
    )
    with launched(name, asked, port, folder):
        check_answer(number)
        yield number


def request_bytes() -> bytes:
    """The message that every call carries."""
    request = message(f"{INFERENCE}.PredictionsRequest")(model_name="tiny", input={"data": BODY.encode()})
    raw: bytes = request.SerializeToString()
    return raw


def check_answer(port: int) -> None:
    """Ask once, and end where the answer is none."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = channel.unary_unary(METHOD)(request_bytes(), timeout=60, wait_for_ready=True)
    prediction = message(f"{INFERENCE}.PredictionResponse").FromString(answer).prediction
    if len(json.loads(prediction)) != 3:
        raise SystemExit(f"not an answer of the model: {prediction[:200]!r}")


def run_h2load(port: int, callers: int, seconds: float, work: Path) -> dict[str, float]:
    """One run; calls that failed are in the figures."""
    raw = request_bytes()
    (work / "message").write_bytes(b"\0" + struct.pack(">I", len(raw)) + raw)
    log = work / "calls"
    log.unlink(missing_ok=True)
    command = ["h2load", "-t", "1", "-c", str(callers), "-m", "1", "-D", f"{seconds:g}", f"--log-file={log}"]
    command += ["-d", str(work / "message"), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    subprocess.run([*command, f"http://127.0.0.1:{port}{METHOD}"], check=True, capture_output=True)
    calls = [line.split("\t") for line in log.read_text().splitlines()]
    times = sorted(int(call[2]) / 1e3 for call in calls if call[1] == "200")
    return {
        "requests_per_s": len(times) / seconds,
        "p50_ms": statistics.median(times),
        "p99_ms": times[int(len(times) * 0.99)],
        "failed": float(len(calls) - len(times)),
    }


def main() -> int:
    """Measure and print."""
    parser = make_parser(__doc__, rounds=3, seconds=5.0)
    parser.add_argument("--callers", default="1,64")
    parser.add_argument("--alone", action="store_true", help="without TorchServe")
    options = parser.parse_args()
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is not there: apt-get install nghttp2-client")
    callers = [int(number) for number in options.callers.split(",")]
    names = ["cloister"] if options.alone else ["cloister", "torchserve"]
    environments = options.environments.resolve()
    environments.mkdir(parents=True, exist_ok=True)
    results = Results("bench_grpc")
    with tempfile.TemporaryDirectory(prefix="bench-grpc-") as folder:
        work = Path(folder)

        def measure(name: str) -> dict[str, float]:
            figures: dict[str, float] = {}
            with started(name, environments, work) as port:
                run_h2load(port, max(callers), WARM_S, work)
                for count in callers:
                    found = run_h2load(port, count, options.seconds, work)
                    figures |= {f"{figure} c={count}": value for figure, value in found.items()}
            return figures

        rounds = run_in_turn(names, options.rounds, measure)

    def cell(name: str, count: int) -> str:
        rate, p50, p99 = (
            rounds.median(name, f"{f} c={count}") for f in ("requests_per_s", "p50_ms", "p99_ms")
        )
        return f"{rate:,.0f} ({p50:.2f} / {p99:.2f})"

    rows = [[name, *(cell(name, count) for count in callers)] for name in names]
    text = render_table(["gRPC requests/s (p50 / p99 ms)", *(f"c={count}" for count in callers)], rows)
    results.publish(options, {"medians": rounds.medians(), "runs": rounds.runs()}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

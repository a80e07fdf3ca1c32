"""What the server costs around a model that is slow: ResNet-50 from JPEG, against the same code in a loop.

Usage: python benchmarks/bench_heavy.py [--rounds 3] [--seconds 15] [--batch-size 16] [--json]

One worker, open mode, plain HTTP, 16 callers, random weights (`examples/resnet50.py`), one picture of
640x480. The loop has batches of the same size, decodes every JPEG too, and has the same number of threads.
Server and loop take turns; figures are medians. The stages are the server's own (`/metrics`, seconds on
average): what a request waited for, and how much of it the handler took.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
EXAMPLES = PEERS.parents[1] / "examples"
sys.path.insert(0, str(PEERS))

from servers import Running, free_port, stop, wait_ready  # noqa: E402

CALLERS = 16
JPEG = "image/jpeg"


def make_picture(path: Path) -> None:
    """A JPEG that is neither empty nor noise: coloured rings."""
    import numpy
    from PIL import Image

    y, x = numpy.mgrid[-1:1:480j, -1.33:1.33:640j]
    distance = numpy.hypot(x, y)
    rings = numpy.stack([numpy.sin(distance * frequency) for frequency in (10, 17, 29)], axis=-1)
    Image.fromarray(((rings + 1) * 127.5).astype("uint8")).save(path, "JPEG", quality=90)


def measure_loop(picture: Path, seconds: float, batch_size: int) -> tuple[float, float]:
    """Pictures per second without a server, and processor seconds for each."""
    command = [sys.executable, str(PEERS / "resnet_handler.py"), str(picture), str(seconds), str(batch_size)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(found[0]), float(found[1])


def measure_server(work: Path, picture: Path, seconds: float, batch_size: int) -> dict[str, float]:
    """Pictures per second through the server, and what its stages took."""
    from cloister.serve.pack import pack_archive

    with tempfile.TemporaryDirectory(dir=work) as folder:
        store, config = Path(folder, "store"), Path(folder, "model.yaml")
        store.mkdir()
        config.write_text(json.dumps({"minWorkers": 1, "maxWorkers": 1, "batchSize": batch_size}))
        pack_archive(
            store / "resnet.mar",
            name="resnet",
            version="1.0",
            handler=PEERS / "resnet_handler.py",
            extra_files=[EXAMPLES / "resnet50.py"],
            config_file=config,
        )
        port = free_port()
        flags = {"serve.mode": "open", "serve.model_store": str(store), "serve.http_port": port}
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(PEERS / "cloister_app.py"), json.dumps(flags)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        url = f"http://127.0.0.1:{port}/predictions/resnet"
        try:
            server = Running("cloister", url, process, picture.read_bytes(), log)
            wait_ready(server, content_type=JPEG)
            ask(server, 3)
            before, used_s = _stages(port), _processor_s(server)
            took_s, latencies = ask(server, seconds)
            after, used_s = _stages(port), _processor_s(server) - used_s
        finally:
            stop(process)
    middle = statistics.median(latencies) * 1e3
    found = {"per_s": len(latencies) / took_s, "p50_ms": middle, "max_ms": max(latencies) * 1e3}
    found["processor_s"] = used_s / len(latencies)
    calls = after["inference_count"] - before["inference_count"]
    found["mean_batch"] = (after["batch_count"] - before["batch_count"]) / calls
    found["handler_share"] = (after["inference_sum"] - before["inference_sum"]) / took_s
    for stage in ("queue", "batch"):
        count = after[f"{stage}_count"] - before[f"{stage}_count"]
        found[f"{stage}_ms"] = (after[f"{stage}_sum"] - before[f"{stage}_sum"]) / count * 1e3
    return found


def ask(server: Running, seconds: float) -> tuple[float, list[float]]:
    """The time until the last answer, and how long each took; every answer that was asked for is waited for.

    A batch takes about a second, so that a load generator which stops in the middle of one counts wrongly.
    """
    latencies: list[float] = []
    started = time.perf_counter()

    def call() -> None:
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        while (sent := time.perf_counter()) - started < seconds:
            connection.request("POST", server.path, server.body, {"content-type": JPEG})
            response = connection.getresponse()
            if len(json.loads(response.read())) != 5 or response.status != 200:
                raise SystemExit(f"a request failed: {response.status}")
            latencies.append(time.perf_counter() - sent)
        connection.close()

    with ThreadPoolExecutor(CALLERS) as pool:
        for future in [pool.submit(call) for _ in range(CALLERS)]:
            future.result()
    return time.perf_counter() - started, latencies


def _processor_s(server: Running) -> float:
    """What frontend and worker have used so far."""
    ticks = 0
    for pid in (server.process.pid, *server.children()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _stages(port: int) -> dict[str, float]:
    """Sums and counts of the histograms of stages."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(cloister_\w+_(?:sum|count))\{[^}]*\} (\S+)", text, re.M):
        stage = re.search(r"(queue|batch|inference)\w*_(sum|count)$", name)
        if stage:
            found[f"{stage[1]}_{stage[2]}"] = float(value)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    loops: list[tuple[float, float]] = []
    served: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-heavy-") as folder:
        work = Path(folder)
        picture = work / "picture.jpg"
        make_picture(picture)
        for _ in range(options.rounds):
            served.append(measure_server(work, picture, options.seconds, options.batch_size))
            loops.append(measure_loop(picture, options.seconds, options.batch_size))
            print(f"server {served[-1]['per_s']:.2f}/s, loop {loops[-1][0]:.2f}/s", file=sys.stderr)
    loop = statistics.median(run[0] for run in loops)
    result: dict[str, Any] = {name: statistics.median(run[name] for run in served) for name in served[0]}
    result |= {"loop_per_s": loop, "ratio": result["per_s"] / loop}
    result["loop_processor_s"] = statistics.median(run[1] for run in loops)
    if options.json:
        json.dump(result, sys.stdout, indent=1)
        print()
    else:
        print(f"server {result['per_s']:.2f}/s, loop {loop:.2f}/s: {result['ratio']:.3f}")
        for name in (
            "p50_ms",
            "max_ms",
            "queue_ms",
            "batch_ms",
            "mean_batch",
            "handler_share",
            "processor_s",
            "loop_processor_s",
        ):
            print(f"  {name} {result[name]:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

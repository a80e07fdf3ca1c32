"""The engine called in process, in a loop, at full throughput. Arguments: task, folder of the forms, form.

Reads a number of seconds from each line of stdin and prints answers per second, the middle latency in ms and
processor seconds for each answer. Two ways are tried at the start and the better one is taken: a thread for
each core, which decodes and infers; and batches of 16, decoded in threads beside the inference.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from heavy import Eager, OpenVino, open_model, render

BATCH_SIZE = 16
TRIAL_S = 3.0
Loop = Callable[[float], list[float]]


def in_threads(model: OpenVino, task: str, body: bytes) -> Loop:
    """A thread and an inference request for each stream."""

    def loop(seconds: float) -> list[float]:
        latencies: list[float] = []
        until = time.perf_counter() + seconds

        def work() -> None:
            request = model.compiled.create_infer_request()
            while (started := time.perf_counter()) < until:
                found = request.infer([model.decode(body)[None]], share_inputs=True)
                json.dumps(render(task, found[0][0]))
                latencies.append(time.perf_counter() - started)

        threads = [threading.Thread(target=work) for _ in range(model.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return latencies

    return loop


def in_batches(model: Eager | OpenVino, body: bytes, size: int) -> Loop:
    """A batch after the other."""

    def loop(seconds: float) -> list[float]:
        latencies: list[float] = []
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            json.dumps(model.answer([body] * size))
            latencies += [time.perf_counter() - started] * size
        return latencies

    return loop


def measure(loop: Loop, seconds: float) -> dict[str, float]:
    """One run."""
    used, started = time.process_time(), time.perf_counter()
    latencies = loop(seconds)
    took = time.perf_counter() - started
    return {
        "per_s": len(latencies) / took,
        "p50_ms": statistics.median(latencies) * 1e3,
        "processor_s": (time.process_time() - used) / len(latencies),
    }


def main() -> None:
    """Load, choose a way, then run whenever asked."""
    task, folder, form = sys.argv[1:4]
    body = Path(os.environ["BODY_FILE"]).read_bytes()
    model = open_model(task, folder, form)
    loops = {"batches of 16": in_batches(model, body, BATCH_SIZE)}
    if isinstance(model, OpenVino):
        loops["a thread for each core"] = in_threads(model, task, body)
    for loop in loops.values():
        loop(0.5)
    best = max(loops, key=lambda name: measure(loops[name], TRIAL_S)["per_s"])
    print(best, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(loops[best], float(line))), flush=True)


if __name__ == "__main__":
    main()

"""The engine called in process, in a loop, at full throughput. Arguments: task, folder, precision.

Reads a number of seconds from each line of stdin and prints answers per second, the middle latency in ms and
processor seconds for each answer. Several ways are tried at the start and the best one is taken:

- *engine*, *engine in fours*: Cloister's engine and its decoding, in as many threads as a worker has, with
  requests one by one, and four at a time;
- *static*: OpenVINO with a batch of one, which it may plan better, and a thread for each stream;
- *batches*: the same, batches of 16, decoded in threads beside the inference.
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
from typing import Any

import numpy
from heavy import SEQUENCE, OpenVino, render

from cloister.engines.engine import FEW_ROWS, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.spec import ImageSpec
from cloister.engines.table import open_engine
from cloister.serve.direct.pictures import PictureReader

BATCH_SIZE = 16
TRIAL_S = 3.0
IMAGE = ImageSpec(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Loop = Callable[[float], list[float]]
Answer = Callable[[list[bytes]], list[object]]


def in_threads(count: int, make_answer: Callable[[], Answer], body: bytes, *, together: int = 1) -> Loop:
    """So many threads, each of which answers some requests after the others."""
    bodies = [body] * together

    def loop(seconds: float) -> list[float]:
        latencies: list[float] = []
        until = time.perf_counter() + seconds

        def work() -> None:
            answer = make_answer()
            while (started := time.perf_counter()) < until:
                for found in answer(bodies):
                    json.dumps(found)
                latencies.extend([time.perf_counter() - started] * together)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return latencies

    return loop


def with_engine(task: str, folder: Path, precision: str, body: bytes, together: int) -> Loop:
    """Cloister's engine, without anything around it."""
    file = "int8.xml" if precision == "int8" else "fp32.xml"
    engine = open_engine("openvino", ModelFiles.from_folder(folder), file, EngineOptions(precision=precision))
    wanted = engine.schema.input()
    pictures = PictureReader(IMAGE, wanted) if task == "resnet50" else None

    def read(content: bytes) -> Any:
        if pictures is not None:
            return pictures.read(content)
        return numpy.array(json.loads(content)["input_ids"], dtype="int64").reshape(1, SEQUENCE)

    def answer(contents: list[bytes]) -> list[object]:
        rows = [read(content) for content in contents]
        found = engine.infer({wanted.name: rows[0] if len(rows) == 1 else numpy.concatenate(rows)})
        return [render(task, row) for row in next(iter(found.values()))]

    threads = engine.streams + max(1, engine.streams // 2)
    return in_threads(threads, lambda: answer, body, together=together)


def static(model: OpenVino, task: str, body: bytes) -> Loop:
    """A thread and an inference request for each stream."""

    def make_answer() -> Answer:
        request = model.compiled.create_infer_request()
        return lambda contents: [
            render(task, request.infer([model.decode(content)[None]], share_inputs=True)[0][0])
            for content in contents
        ]

    return in_threads(model.streams, make_answer, body)


def in_batches(model: OpenVino, body: bytes, size: int) -> Loop:
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
    task, folder, precision = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    body = Path(os.environ["BODY_FILE"]).read_bytes()
    model = OpenVino(task, folder, precision)
    loops = {
        "engine": with_engine(task, folder, precision, body, 1),
        "engine in fours": with_engine(task, folder, precision, body, FEW_ROWS),
        "static": static(model, task, body),
        "batches": in_batches(model, body, BATCH_SIZE),
    }
    for loop in loops.values():
        loop(0.5)
    best = max(loops, key=lambda name: measure(loops[name], TRIAL_S)["per_s"])
    print(best, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(loops[best], float(line))), flush=True)


if __name__ == "__main__":
    main()

"""A trial measures each way to run a method as it will be run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloister.engines.engine import Array, Arrays
from cloister.optimize.job import Job, Source
from cloister.optimize.samples import gather
from cloister.optimize.trial import _measure, _Subject


class Shared:
    """A machine whose streams share its time: each of several takes longer than one."""

    def __init__(self, streams: int) -> None:
        self._took_s = 0.002 * streams

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        time.sleep(self._took_s)
        return {"y": inputs["x"]}

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        return [self.infer(inputs) for inputs in batches]

    def close(self) -> None:
        """Nothing to let go of."""


def test_latency_is_that_of_each_way_to_run(tmp_path: Path) -> None:
    """One request alone takes longer in one of several streams, and a limit for it has to know that."""
    gather([{"x": np.zeros((2, 3), np.float32)}]).save(tmp_path / "data.npz")
    job = Job(
        task="trial",
        source=Source("onnx", "none"),
        data=str(tmp_path / "data.npz"),
        concurrency=2,
        latency_samples=5,
        throughput_s=0.02,
    )
    subject = _Subject(lambda streams, _: Shared(streams), ["x"], (1, 4))
    found = _measure(job, subject, lambda _: None)
    by_streams = {way.streams: way.p50_ms for way in found.timings}
    assert by_streams[1] == found.p50_ms
    assert by_streams[4] > 2 * by_streams[1]

"""The tasks that measure: one method, in this process, on these rows.

1. Load the model and run one row.
2. Latency: single rows, one at a time, in one stream.
3. Outputs for the evaluation rows, for the search to judge.
4. Throughput with as many requests at once as asked for: in one stream, in several, and with rows put
   together where a first try says that it may help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from cloister.engines.engine import EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.table import open_engine
from cloister.errors import CloisterError
from cloister.optimize.job import Event, Job, Measured, Stage, Timing
from cloister.optimize.program import Program
from cloister.optimize.runner import Runner, original_runner
from cloister.optimize.samples import Samples, chunks
from cloister.optimize.source import family_of_object, load
from cloister.optimize.timing import Latency, measure_latency, measure_throughput

WORTH = 0.97
"""Rows are put together only if that takes less than this share of the time that they take apart."""
A_FEW = 4
"""So many are tried too: of a large model, as many as there are requests may leave the caches."""
STREAM_SAMPLES = 20
STREAM_CAP_S = 2.0
"""Of single calls where there are several streams."""
Enter = Callable[[Stage], None]
Open = Callable[[int, int], Runner]
"""Streams and rows to a runner."""


@dataclass(frozen=True)
class _Subject:
    """What a trial measures."""

    open: Open
    names: Sequence[str]
    streams: Sequence[int]


def try_original(job: Job, enter: Enter) -> Event:
    """The task ``original``: the user's model as its own library runs it."""
    enter("convert")
    model = load(job.source)
    family = family_of_object(model)
    enter("forward")
    samples = Samples.load(Path(job.data))
    runner = original_runner(model, family, samples.names, job.threads)
    measured = _measure(job, _Subject(lambda streams, rows: runner, runner.names, (1,)), enter)
    found = replace(
        measured, family=family, convolutions=_convolutions(model), size_bytes=_object_bytes(model)
    )
    return Event(measured=found)


def try_artifact(job: Job, enter: Enter) -> Event:
    """The task ``trial``: an artifact in the engine that would serve it."""
    enter("convert")
    files = ModelFiles.from_folder(Path(job.folder))

    def open_runner(streams: int, rows: int) -> Runner:
        options = EngineOptions(
            threads=job.threads, streams=streams, precision=job.precision, rows=rows, compiled=job.compiled
        )
        return open_engine(job.kind, files, job.file, options)

    engine = open_runner(1, 1)
    names = [spec.name for spec in engine.schema.inputs]  # type: ignore[attr-defined]
    opened: dict[tuple[int, int], Runner] = {(1, 1): engine}

    def reuse(streams: int, rows: int) -> Runner:
        return opened.pop((streams, rows), None) or open_runner(streams, rows)

    measured = _measure(job, _Subject(reuse, names, job.streams), enter)
    return Event(measured=measured)


def _measure(job: Job, subject: _Subject, enter: Enter) -> Measured:
    enter("forward")
    samples = Samples.load(Path(job.data)).named(subject.names)
    rows = samples.rows(max(job.concurrency, 32))
    runner = subject.open(1, 1)
    runner.infer(rows[0])
    enter("measure")
    latency = measure_latency(
        lambda number: runner.infer(rows[number % len(rows)]),
        samples=job.latency_samples,
        original_s=job.original_s or None,
    )
    evaluated = _evaluate(job, runner, subject.names, latency)
    timings, together = _throughput(job, runner, rows, latency)
    runner.close()
    for streams in subject.streams:
        if streams > 1:
            with _Opened(subject.open(streams, 1)) as several:
                way = Timing(streams, 1, 0.0, _alone_ms(job, several, rows))
                timings.append(_wave_timing(job, several, rows, way, latency))
                few = min(A_FEW, together, job.concurrency // streams)
                if few > 1:
                    timings.append(_wave_timing(job, several, rows, replace(way, rows=few), latency))
    return Measured(
        mean_ms=latency.mean_ms,
        p50_ms=latency.p50_ms,
        p99_ms=latency.p99_ms,
        calls=latency.calls,
        timings=tuple(timings),
        memory_bytes=_peak_bytes(),
        evaluated_rows=evaluated,
        input_names=tuple(subject.names),
    )


def _throughput(
    job: Job, runner: Runner, rows: Sequence[Mapping[str, Any]], latency: Latency
) -> tuple[list[Timing], int]:
    """In one stream: rows one by one, and together if a try says that it may help; then how many, or 1."""
    found = [_wave_timing(job, runner, rows, Timing(1, 1, 0.0, latency.p50_ms), latency)]
    # A slow model is tried with fewer rows, so that the try does not take longer than all other measurements.
    most = min(job.concurrency, max(2, _calls_within(2 * job.throughput_s, latency)))
    tried: dict[int, float] = {}
    for count in sorted({min(A_FEW, most), most}) if most > 1 else ():
        together = next(chunks(_cycle(rows, count), count))
        try:
            runner.infer(together)
            started = time.perf_counter()
            runner.infer(together)
            tried[count] = (time.perf_counter() - started) / count
        except (CloisterError, RuntimeError, ValueError):
            break  # a model of one row at a time, or of few
    if tried:
        count = min(tried, key=tried.__getitem__)
        if tried[count] * 1e3 < WORTH * latency.p50_ms:
            way = Timing(1, count, 0.0, latency.p50_ms)
            found.append(_wave_timing(job, runner, rows, way, latency))
            return found, count
    return found, 1


def _wave_timing(
    job: Job, runner: Runner, rows: Sequence[Mapping[str, Any]], way: Timing, latency: Latency
) -> Timing:
    """As many requests at once as asked for, until the time is up.

    Fewer where that many take longer than the whole measurement should: more of them would only wait.
    """
    least = way.streams * way.rows
    count = max(least, min(job.concurrency, way.streams * _calls_within(job.throughput_s, latency)))
    requests = list(chunks(_cycle(rows, count), way.rows))

    def wave() -> int:
        runner.infer_each(requests)
        return count

    if way.streams > 1:
        runner.infer_each(requests[: way.streams])
    per_s, _ = measure_throughput(wave, seconds=job.throughput_s)
    return replace(way, per_s=per_s)


def _alone_ms(job: Job, runner: Runner, rows: Sequence[Mapping[str, Any]]) -> float:
    """The median of single calls, where a few are enough."""
    return measure_latency(
        lambda number: runner.infer(rows[number % len(rows)]),
        samples=min(STREAM_SAMPLES, job.latency_samples),
        cap_s=STREAM_CAP_S,
    ).p50_ms


def _peak_bytes() -> int:
    """The most that this process had; ``ru_maxrss`` would count what the one that started it has, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not say how much memory a process had")


def _calls_within(seconds: float, latency: Latency) -> int:
    return int(seconds * 1e3 / max(latency.p50_ms, 1e-3))


def _cycle(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """As many rows as there are requests; only those of one shape can be put together."""
    shapes = [tuple(array.shape for array in row.values()) for row in rows]
    same = [row for row, shape in zip(rows, shapes, strict=True) if shape == shapes[0]]
    return [same[place % len(same)] for place in range(count)]


def _evaluate(job: Job, runner: Runner, names: Sequence[str], latency: Latency) -> int:
    """Write the first output for the evaluation rows; returns how many they were."""
    if not job.evaluation:
        return 0
    samples = Samples.load(Path(job.evaluation)).named(names)
    limit = job.evaluation_rows
    if not limit:
        limit = max(8, int(job.evaluation_cap_s * 1e3 / latency.p50_ms))
    samples = samples.first(limit)
    outputs = [_first_output(runner, piece) for piece in samples.pieces]
    np.savez(job.outputs, *outputs)
    return len(samples)


def _first_output(runner: Runner, piece: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    try:
        found = runner.infer(piece)
    except (CloisterError, RuntimeError, ValueError):
        count = len(next(iter(piece.values())))
        if count == 1:
            raise
        # A model of one row at a time.
        single = [{name: array[at : at + 1] for name, array in piece.items()} for at in range(count)]
        return np.concatenate([next(iter(runner.infer(row).values())) for row in single])
    return next(iter(found.values()))


class _Opened:
    """Closes a runner at the end."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __enter__(self) -> Runner:
        return self._runner

    def __exit__(self, *_: object) -> None:
        self._runner.close()


def _convolutions(model: Any) -> bool:
    """Whether a torch module has any: the layout of memory matters to those only."""
    if isinstance(model, Program):
        return model.has_convolutions()
    modules = getattr(model, "modules", None)
    return callable(modules) and any("Conv" in type(module).__name__ for module in modules())


def _object_bytes(model: Any) -> int:
    """Of parameters and buffers; 0 where the object does not say."""
    state = getattr(model, "state_dict", None)
    if not callable(state):
        return 0
    return sum(value.numel() * value.element_size() for value in state().values() if hasattr(value, "numel"))

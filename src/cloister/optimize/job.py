"""What the search asks of a process of its own, and what that answers: plain values, as JSON."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec


class Status(StrEnum):
    """What became of a method. The first six are BigDL Nano's words or like them."""

    SUCCESSFUL = "successful"
    LACK_DEPENDENCY = "lack dependency"
    FAIL_TO_CONVERT = "fail to convert"
    EARLY_STOPPED = "early stopped"
    FAIL_TO_FORWARD = "fail to forward"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    NOT_TRIED = "not tried"
    """Left out: the time is up, or something that was measured says that it cannot be the best."""


Stage = Literal["convert", "forward", "measure"]
Family = Literal["torch", "onnx", "ir", "tensorflow", "trees"]


class Source(msgspec.Struct, frozen=True):
    """A user's model: a file, a factory, or a pickled object."""

    form: str
    """A key of ``source.FORMS``."""
    place: str
    """The path, or ``module:factory``."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One task for a process of its own. Paths are within the search's private folder, or the user's."""

    task: Literal["original", "convert", "trial"]
    source: Source
    search_path: tuple[str, ...] = ()
    """Where Python finds the user's modules."""
    data: str = ""
    """Calibration data to convert with, or the rows to measure with."""
    folder: str = ""
    """Of the artifact: to write for ``convert``, to read for ``trial``."""
    threads: int = 0

    recipe: str = ""
    base: str = ""
    """Folder of the artifact that this one is made from."""
    family: str = ""
    calibration_rows: int = 0
    layout: str = ""
    validation: str = ""
    """For quantization that looks at accuracy: data with targets, the metric, and the drop in its unit."""
    metric: str = ""
    max_drop: float = 0.0

    kind: str = ""
    file: str = ""
    precision: str = ""
    compiled: bool = False
    concurrency: int = 16
    streams: tuple[int, ...] = (1,)
    latency_samples: int = 100
    throughput_s: float = 4.0
    original_s: float = 0.0
    outputs: str = ""
    """Where to write the outputs for ``evaluation``."""
    evaluation: str = ""
    evaluation_rows: int = 0
    evaluation_cap_s: float = 30.0


class Timing(msgspec.Struct, frozen=True):
    """Throughput of one way to run a method."""

    streams: int
    rows: int
    """Requests that were put together for one inference."""
    per_s: float
    p50_ms: float = 0.0
    """Of one request alone, run so: several streams share the cores, and each is slower than one."""


class Artifact(msgspec.Struct, frozen=True):
    """A converted model."""

    file: str
    bytes: int
    took_s: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a method that works does."""

    mean_ms: float
    p50_ms: float
    p99_ms: float
    calls: int
    timings: tuple[Timing, ...]
    memory_bytes: int
    evaluated_rows: int
    input_names: tuple[str, ...]
    family: str = ""
    convolutions: bool = False
    size_bytes: int = 0


class Failure(msgspec.Struct, frozen=True):
    """Why a process did not do its task."""

    status: Status
    reason: str


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from the process: where it is, or how it ended."""

    stage: Stage | None = None
    artifact: Artifact | None = None
    measured: Measured | None = None
    failure: Failure | None = None

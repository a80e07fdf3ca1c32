"""The search: each method in a process of its own, conversions shared, the most promising first.

1. The original: its latency bounds the others, its outputs judge them, its family says what can be tried.
2. For each method: the artifacts that it needs and that nobody has made yet, then a trial.
3. Methods of which a measured one says that they cannot be the best are left out, and so is everything that
   the time does not suffice for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.engines.threads import available_cores
from cloister.errors import CloisterError, ConfigError, MalformedInput, MissingDependencyError
from cloister.optimize.isolation import available_memory, run_job
from cloister.optimize.job import Artifact, Event, Failure, Family, Job, Measured, Source, Stage, Status
from cloister.optimize.machine import describe_machine
from cloister.optimize.methods import DEFAULT, METHODS, ORIGINAL, Method, choose_methods, find_method
from cloister.optimize.metrics import Metric, align, mean_cosine
from cloister.optimize.recipes import RECIPES
from cloister.optimize.result import Goal, Result, Row
from cloister.optimize.samples import Samples
from cloister.optimize.source import family_of, search_path
from cloister.optimize.workspace import Workspace

METHOD_LIMIT_S = 1800.0
MEMORY_SHARE = 0.9
CALIBRATION_S = 8.0
CALIBRATION_ROWS = (10, 300)
"""At least and at most, as far as there is data. Between: what the original computes in ``CALIBRATION_S``."""
ORIGINAL_SHARE = 0.4
"""Of the budget: what only serves as a measure must not use up the time for what could be better."""
OUTCLASSED = 0.5
"""An engine whose FP32 has less than this share of another's best throughput is not tried in INT8."""
_ORIGINAL_IN_ENGINE = {"onnx": "onnxruntime_fp32", "ir": "openvino_fp32", "tensorflow": "openvino_fp32"}

Progress = Callable[[str, str], None]
"""Gets a method's name and what is done for it now."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to search, and how."""

    source: Source
    calibration: Samples
    validation: Samples | None = None
    metric: Metric | None = None
    metric_place: str = ""
    """Where a process of its own finds the metric: ``data.load_metric``."""
    goal: Goal = field(default_factory=Goal)
    search_mode: str = DEFAULT
    includes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    threads: int = 0
    concurrency: int = 16
    latency_samples: int = 100
    throughput_s: float = 4.0
    method_limit_s: float = METHOD_LIMIT_S
    budget_s: float | None = None
    """For the whole search; what is not done by then is not tried."""
    accuracy_aware: bool = False
    """Try quantization with accuracy control also where plain INT8 is accurate enough."""

    def check(self) -> None:
        """Refuse what contradicts itself before anything is computed.

        Raises:
            ConfigError: a drop without a metric, a metric without targets, an unknown method.
        """
        if self.goal.max_drop is not None and self.metric is None:
            raise ConfigError(
                "a limit for the drop of accuracy needs a metric", hint="such as --metric accuracy"
            )
        if self.metric is not None and (self.validation is None or not self.validation.targets):
            raise ConfigError(f"the metric {self.metric.name} needs validation data with targets")
        for name in (*self.includes, *self.excludes):
            find_method(name)
        choose_methods("torch", search_mode=self.search_mode)
        if min(self.concurrency, self.latency_samples) < 1 or self.threads < 0:
            raise ConfigError("threads, concurrency and the number of samples are positive")


def search(
    plan: Plan,
    workspace: Workspace,
    *,
    on_row: Callable[[Row], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Result:
    """Try all methods of a plan; what fails is a row.

    Args:
        workspace: artifacts stay in it until it is closed.
        on_row: called with each row when it is complete.
    Raises:
        ConfigError: the plan contradicts itself, or the model cannot even be loaded.
    """
    plan.check()
    started = time.monotonic()
    run = _Search(plan, workspace, progress, started)
    rows: list[Row] = []
    interrupted = False
    try:
        for row in run.rows():
            rows.append(row)
            on_row(row)
    except KeyboardInterrupt:
        if not rows:
            raise
        interrupted = True
    return Result(
        rows=tuple(rows),
        goal=plan.goal,
        metric=plan.metric,
        concurrency=plan.concurrency,
        threads=run.threads,
        took_s=time.monotonic() - started,
        interrupted=interrupted,
        machine=describe_machine(),
    )


def convert_for(plan: Plan, workspace: Workspace, method: Method) -> Row:
    """Make what one method needs, without measuring it.

    Raises:
        ConfigError: it could not be made; says why.
        MissingDependencyError: a package for it is not installed.
    """
    run = _Search(plan, workspace, lambda *_: None, time.monotonic())
    made = run.make(method)
    if isinstance(made, Failure):
        kind = MissingDependencyError if made.status is Status.LACK_DEPENDENCY else ConfigError
        raise kind(f"{method.name}: {made.status}: {made.reason}")
    folder = workspace.folder(method.artifact)
    return Row(
        method.name, Status.SUCCESSFUL, "", method, size_bytes=made.bytes, folder=folder, file=made.file
    )


class _Search:
    """One run: artifacts made so far, rows so far, what the original did."""

    def __init__(self, plan: Plan, workspace: Workspace, progress: Progress, started: float) -> None:
        self._plan, self._workspace, self._progress = plan, workspace, progress
        self._until = None if plan.budget_s is None else started + plan.budget_s
        self.threads = plan.threads or available_cores()
        self._memory = int(available_memory() * MEMORY_SHARE)
        self._artifacts: dict[str, Artifact | Failure] = {}
        self._rows: list[Row] = []
        self._reference: list[NDArray[Any]] | None = None
        self._evaluated = 0
        self._original: Row | None = None
        self._family: Family | None = family_of(plan.source)
        data = workspace.folder("data")
        self._calibration, self._evaluation = data / "calibration.npz", data / "evaluation.npz"
        plan.calibration.save(self._calibration)
        (plan.validation or plan.calibration).save(self._evaluation)
        self._search_path = search_path()

    def rows(self) -> Iterator[Row]:
        """Each row, when it is complete."""
        if self._family in (None, "torch", "trees"):
            yield self._keep(self._try_original())
        family = self._family
        if family is None:
            failed = self._rows[-1]
            if failed.status in (Status.FAIL_TO_CONVERT, Status.LACK_DEPENDENCY):
                raise ConfigError(f"the model could not be loaded: {failed.reason}")
            family = self._family = "torch"  # by far the most; what it is not, fails to convert
        for method in self._methods(family):
            reason = self._needless(method)
            if reason:
                yield self._keep(Row(method.name, Status.NOT_TRIED, reason, method))
            else:
                yield self._keep(self._try(method))

    def make(self, method: Method) -> Artifact | Failure:
        """What a method needs, with all that this is made from."""
        if self._family is None:
            self._family = "torch"
        return self._make(method.artifact, method.name)

    def _methods(self, family: Family) -> list[Method]:
        measured = self._original.measured if self._original else None
        methods = choose_methods(
            family,
            search_mode=self._plan.search_mode,
            includes=self._plan.includes,
            excludes=self._plan.excludes,
            convolutions=measured.convolutions if measured else True,
        )
        # The measure of all others is there in any case, as the original is where it runs by itself.
        first = [method for method in METHODS if method.name == _ORIGINAL_IN_ENGINE.get(family)]
        return [*first, *(method for method in methods if method not in first)]

    def _keep(self, row: Row) -> Row:
        self._rows.append(row)
        return row

    def _try_original(self) -> Row:
        started = time.monotonic()
        folder = self._workspace.folder(ORIGINAL)
        job = self._trial_job(ORIGINAL, folder, task="original", streams=(1,))
        event = self._run(ORIGINAL, job, folder, "trying")
        if event.measured is not None and self._family is None:
            self._family = event.measured.family  # type: ignore[assignment]  # one of Family: the child's own
        row = Row(ORIGINAL, Status.SUCCESSFUL, took_s=time.monotonic() - started)
        return self._judge(row, event, folder)

    def _try(self, method: Method) -> Row:
        started = time.monotonic()
        row = Row(method.name, Status.SUCCESSFUL, method=method)
        made = self._make(method.artifact, method.name)
        if isinstance(made, Failure):
            took_s = time.monotonic() - started
            return replace(row, status=made.status, reason=made.reason, took_s=took_s)
        artifact = self._workspace.folder(method.artifact)
        folder = self._workspace.folder(f"trial-{method.name}")
        job = self._trial_job(method.name, folder, task="trial", streams=self._streams(), method=method)
        job = msgspec.structs.replace(job, folder=str(artifact), file=made.file)
        event = self._run(method.name, job, folder, "trying")
        row = replace(row, folder=artifact, file=made.file, size_bytes=made.bytes)
        row = self._judge(row, event, folder)
        return replace(row, took_s=time.monotonic() - started)

    def _make(self, name: str, method: str) -> Artifact | Failure:
        """An artifact, made once; what could not be made is not tried again."""
        if name not in self._artifacts:
            base = RECIPES[name].base
            under = self._make(base, method) if base else None
            self._artifacts[name] = under if isinstance(under, Failure) else self._convert(name, base, method)
        return self._artifacts[name]

    def _convert(self, name: str, base: str, method: str) -> Artifact | Failure:
        plan, folder = self._plan, self._workspace.folder(f"make-{name}")
        job = Job(
            task="convert",
            source=plan.source,
            search_path=self._search_path,
            data=str(self._calibration),
            folder=str(self._workspace.folder(name)),
            base=str(self._workspace.folder(base)) if base else "",
            recipe=name,
            family=self._family or "",
            threads=self.threads,
            calibration_rows=self._calibration_rows(),
            validation=str(self._evaluation),
            metric=plan.metric_place,
            max_drop=self._max_drop(),
        )
        event = self._run(method, job, folder, f"making {name}")
        if event.artifact is not None:
            return event.artifact
        return event.failure or Failure(Status.FAIL_TO_CONVERT, "the process gave no artifact")

    def _run(self, method: str, job: Job, folder: Path, words: str) -> Event:
        self._progress(method, words)

        def on_stage(stage: Stage) -> None:
            if stage == "measure":
                self._progress(method, "measuring")

        limit_s = self._plan.method_limit_s
        if self._until is not None:
            left_s = self._until - time.monotonic()
            if job.task == "original":
                left_s *= ORIGINAL_SHARE
            limit_s = max(1.0, min(limit_s, left_s))
        return run_job(job, folder, limit_s=limit_s, memory_bytes=self._memory, on_stage=on_stage)

    def _trial_job(
        self, name: str, folder: Path, *, task: Any, streams: tuple[int, ...], method: Method | None = None
    ) -> Job:
        plan = self._plan
        original = self._original.measured if self._original else None
        return Job(
            task=task,
            source=plan.source,
            search_path=self._search_path,
            data=str(self._calibration),
            threads=self.threads,
            kind=method.kind if method else "",
            precision=method.precision if method else "",
            compiled=method.compiled if method else False,
            concurrency=plan.concurrency,
            streams=streams,
            latency_samples=plan.latency_samples,
            throughput_s=plan.throughput_s,
            original_s=original.mean_ms / 1e3 if original else 0.0,
            outputs=str(folder / "outputs.npz"),
            evaluation=str(self._evaluation),
            evaluation_rows=self._evaluated,
            evaluation_cap_s=30.0 if plan.metric else 4.0,
        )

    def _streams(self) -> tuple[int, ...]:
        """One, and one for each core; between them where there are many cores."""
        return tuple(sorted({1, *(n for n in (self.threads // 4, self.threads) if n > 1)}))

    def _judge(self, row: Row, event: Event, folder: Path) -> Row:
        """A row with its measurements, and its outputs compared with the original's."""
        if event.measured is None:
            failure = event.failure or Failure(Status.FAIL_TO_FORWARD, "the process gave no result")
            return replace(row, status=failure.status, reason=failure.reason)
        try:
            row = self._compare(row, event.measured, _read_outputs(folder / "outputs.npz"))
        except Exception as error:  # noqa: BLE001 (a metric may be the user's own, and raise anything)
            what = "" if isinstance(error, CloisterError) else f"{type(error).__name__}: "
            return replace(row, status=Status.FAIL_TO_FORWARD, reason=f"outputs: {what}{error}"[:300])
        if self._original is None and row.is_measure:
            self._original = row
        return row

    def _compare(self, row: Row, measured: Measured, outputs: list[NDArray[Any]]) -> Row:
        plan = self._plan
        row = replace(
            row,
            measured=measured,
            size_bytes=row.size_bytes or measured.size_bytes,
            max_latency_s=plan.goal.max_latency_s,
        )
        if self._reference is None and row.is_measure:
            self._reference, self._evaluated = outputs, measured.evaluated_rows
        if self._reference is None:
            return row
        if [len(part) for part in outputs] != [len(part) for part in self._reference]:
            raise MalformedInput("another number of rows than the original's")
        outputs = [align(part, other) for part, other in zip(outputs, self._reference, strict=True)]
        row = replace(row, cosine=mean_cosine(outputs, self._reference))
        if plan.metric is None or plan.validation is None:
            return row
        targets = plan.validation.first(measured.evaluated_rows).targets
        score = plan.metric.score(np.concatenate(outputs), np.concatenate(targets))
        original = self._original.metric if self._original else score
        assert original is not None
        return replace(row, metric=score, drop=plan.metric.drop(original, score))

    def _needless(self, method: Method) -> str:
        """Why a method is left out; empty if it is to be tried."""
        if self._until is not None and time.monotonic() >= self._until:
            return "the time is up"
        rows = {row.name: row for row in self._rows}
        if method.repairs:
            if self._plan.metric is None:
                return "needs a metric"
            broken = rows.get(method.repairs)
            if broken is None or broken.drop is None:
                return f"{method.repairs} did not work"
            if broken.drop <= self._max_drop() and not self._plan.accuracy_aware:
                return f"{method.repairs} is accurate enough"
        plain = rows.get("onnxruntime_fp32")
        thorough = self._plan.includes or self._plan.search_mode != DEFAULT
        if method.name == "onnxruntime_int8" and plain is not None and not thorough:
            best = max((_throughput(row) for row in self._rows), default=0.0)
            if 0 < _throughput(plain) < OUTCLASSED * best:
                return "onnxruntime_fp32 is outclassed"
        return ""

    def _max_drop(self) -> float:
        """In the metric's unit; a hundredth of the original where no limit is given."""
        metric, original = self._plan.metric, self._original
        if metric is None or original is None or original.metric is None:
            return 0.01
        if self._plan.goal.max_drop is None:
            return 0.01 * (1.0 if metric.share else abs(original.metric))
        return self._plan.goal.max_drop.allowed(original.metric, share=metric.share)

    def _calibration_rows(self) -> int:
        least, most = CALIBRATION_ROWS
        measured = self._original.measured if self._original else None
        if measured is None:
            return min(len(self._plan.calibration), most)
        wanted = int(CALIBRATION_S * 1e3 / max(measured.mean_ms, 1e-3))
        return min(len(self._plan.calibration), max(least, min(most, wanted)))


def _throughput(row: Row) -> float:
    return row.best_timing.per_s if row.best_timing else 0.0


def _read_outputs(path: Path) -> list[NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[name] for name in arrays.files]

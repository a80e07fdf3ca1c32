"""BigDL Nano's ``InferenceOptimizer``, name for name, over the search of this package.

What IPEX did is in PyTorch itself today, so its methods are PyTorch's and ``use_ipex`` changes nothing.

Source: BigDL 2.4, `bigdl.nano.pytorch.InferenceOptimizer`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cloister.errors import ConfigError, MissingDependencyError
from cloister.optimize.job import Source, Status
from cloister.optimize.methods import DEFAULT, METHODS, ORIGINAL, Method, find_method
from cloister.optimize.metrics import METRICS, Metric, find_metric
from cloister.optimize.model import OptimizedModel
from cloister.optimize.quantities import Drop
from cloister.optimize.result import Goal, Result
from cloister.optimize.samples import Samples, gather
from cloister.optimize.search import Plan, convert_for, search
from cloister.optimize.source import required_inputs
from cloister.optimize.workspace import Workspace

_KINDS = {"openvino": "openvino", "onnxruntime": "onnxruntime", "jit": "torch", "inductor": "torch"}
ACCELERATORS = (None, *_KINDS)
PRECISIONS = ("fp32", "bf16", "int8")


class InferenceOptimizer:
    """Find, make, save and load faster forms of a PyTorch model that is in memory."""

    ALL_INFERENCE_ACCELERATION_METHOD = (ORIGINAL, *(method.name for method in METHODS))

    def __init__(self) -> None:
        self._result: Result | None = None
        self._workspace: Workspace | None = None
        self._model: Any = None
        self._threads = 0

    def optimize(
        self,
        model: Any,
        training_data: Any,
        validation_data: Any = None,
        input_sample: Any = None,
        metric: Callable[[Any, Any], Any] | str | None = None,
        direction: str = "max",
        thread_num: int | None = None,
        accelerator: Iterable[str | None] | None = None,
        precision: Iterable[str] | None = None,
        use_ipex: Iterable[bool] | None = None,
        search_mode: str = DEFAULT,
        includes: Iterable[str] | None = None,
        excludes: Iterable[str] | None = None,
        output_filename: str | None = None,
        latency_sample_num: int = 100,
        concurrency: int = 16,
        budget_s: float | None = None,
    ) -> None:
        """Try all methods; ``summary`` and ``get_best_model`` tell what was found.

        Args:
            training_data: batches to calibrate with: a ``DataLoader``, tensors, or an iterable of batches.
            validation_data: batches with targets, for the metric.
            metric: of predictions and targets (tensors), or the name of one of Cloister's.
            direction: ``max`` if a higher metric is better, else ``min``.
            output_filename: an HTML report to write.
        Raises:
            ConfigError: the arguments contradict each other, or the model cannot be run at all.
        """
        del input_sample, use_ipex  # the data says what the inputs are, and PyTorch does what IPEX did
        self.close()
        wanted = _wanted(includes, accelerator, precision)
        self._workspace = Workspace()
        chosen = _metric(metric, direction)
        plan = Plan(
            source=_keep(model, self._workspace),
            calibration=gather(training_data, inputs=required_inputs(model)),
            validation=None
            if validation_data is None
            else gather(validation_data, inputs=required_inputs(model)),
            metric=chosen,
            metric_place=_keep_metric(chosen, self._workspace),
            search_mode=search_mode,
            includes=wanted,
            excludes=tuple(excludes or ()),
            threads=thread_num or 0,
            concurrency=concurrency,
            latency_samples=latency_sample_num,
            budget_s=budget_s,
        )
        self._model, self._threads = model, plan.threads
        self._result = search(plan, self._workspace)
        if output_filename is not None:
            from cloister.optimize.report import render_report

            Path(output_filename).write_text(
                render_report(self._result, type(model).__name__), encoding="utf-8"
            )

    @property
    def result(self) -> Result:
        """All rows of the last search.

        Raises:
            ConfigError: there was none.
        """
        if self._result is None:
            raise ConfigError("nothing was optimized yet", hint="call optimize first")
        return self._result

    @property
    def optimized_model_dict(self) -> dict[str, dict[str, Any]]:
        """Each method's row as plain values."""
        return {row.name: row.to_mapping() for row in self.result.rows}

    def summary(self) -> None:
        """Print the table of methods."""
        from rich.console import Console

        from cloister.optimize.table import WIDTH, render_reasons, render_table

        result = self.result
        best = result.best()
        table = render_table(
            result.rows,
            concurrency=result.concurrency,
            metric=result.metric,
            best=best.name if best else "",
        )
        console = Console(highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console = Console(highlight=False, markup=False, emoji=False, width=WIDTH)
        console.print(table)
        for line in render_reasons(result.rows):
            console.print(line)

    def get_best_model(
        self,
        accelerator: str | None = None,
        precision: str | None = None,
        use_ipex: bool | None = None,
        accuracy_criterion: float | None = None,
    ) -> tuple[Any, str]:
        """The model with the lowest latency that fits, and the method's name.

        Args:
            accelerator: ``openvino``, ``onnxruntime`` or ``jit``; any if not given.
            accuracy_criterion: how much of the metric may be lost, in its own unit.
        Raises:
            ConfigError: no method fits.
        """
        del use_ipex
        drop = None if accuracy_criterion is None else Drop(accuracy_criterion, percent=False)
        result = self.result.with_goal(Goal("latency", drop))
        fitting = [
            row
            for row in result.rows
            if not result.objections(row)
            and (accelerator is None or (row.method is not None and row.method.kind == _kind(accelerator)))
            and (precision is None or (row.method.precision if row.method else "fp32") == precision)
        ]
        if not fitting:
            raise ConfigError("no method fits", hint="look at summary(), and loosen the criterion")
        best = min(fitting, key=lambda row: row.measured.p50_ms if row.measured else 0.0)
        return self.get_model(best.name), best.name

    def get_model(self, method_name: str) -> Any:
        """The model of one method, ready to call; the original is the model that was given.

        Raises:
            ConfigError: the method was not tried or did not succeed.
        """
        row = self.result.row(find_method(method_name))
        if row.status is not Status.SUCCESSFUL:
            raise ConfigError(f"{row.name}: {row.status} {row.reason}".rstrip())
        if row.name == ORIGINAL:
            return self._model
        return OptimizedModel.of_row(row, threads=self._threads, held=self._workspace)

    @staticmethod
    def quantize(
        model: Any,
        precision: str = "int8",
        accelerator: str | None = None,
        calib_data: Any = None,
        input_sample: Any = None,
        metric: Callable[[Any, Any], Any] | str | None = None,
        accuracy_criterion: float | None = None,
        validation_data: Any = None,
        thread_num: int | None = None,
    ) -> OptimizedModel:
        """The model in INT8 or BF16.

        INT8 without an accelerator is OpenVINO's. With a metric and a criterion, what costs more accuracy
        than that stays in FP32.

        Raises:
            ConfigError: it could not be made, or there is no data to calibrate with.
        """
        data = calib_data if calib_data is not None else input_sample
        if data is None:
            raise ConfigError("quantization needs data", hint="calib_data=, real inputs")
        chosen = _metric(metric, "max")
        watched = chosen is not None and accuracy_criterion is not None
        if precision == "int8" and accelerator is None:
            accelerator = "openvino"
        name = "openvino_int8_accuracy" if watched else _name(accelerator, precision)
        return _make(
            model,
            name,
            gather(data, inputs=required_inputs(model)),
            thread_num,
            validation=None
            if validation_data is None
            else gather(validation_data, inputs=required_inputs(model)),
            metric=chosen,
            goal=Goal(max_drop=Drop(accuracy_criterion or 0.0, percent=False) if watched else None),
        )

    @staticmethod
    def trace(
        model: Any,
        input_sample: Any = None,
        accelerator: str | None = None,
        precision: str = "fp32",
        thread_num: int | None = None,
        channels_last: bool = False,
    ) -> OptimizedModel:
        """The model in another engine, or compiled (``jit``), in FP32 or BF16.

        Raises:
            ConfigError: it could not be made.
        """
        if input_sample is None:
            raise ConfigError("tracing needs an example", hint="input_sample=, one batch")
        name = _name(accelerator, precision) + ("_channels_last" if channels_last else "")
        samples = gather([input_sample], labelled=False)
        return _make(model, find_method(name), samples, thread_num)

    @staticmethod
    def save(model: Any, path: str | Path) -> None:
        """Write a model into a folder: an optimized one, or the parameters of an original."""
        if isinstance(model, OptimizedModel):
            model.save(Path(path))
            return
        import torch

        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), Path(path) / "weights.pt")

    @staticmethod
    def load(path: str | Path, model: Any = None) -> Any:
        """What ``save`` wrote; an original's parameters are loaded into ``model``."""
        weights = Path(path) / "weights.pt"
        if model is None or not weights.is_file():
            return OptimizedModel.load(Path(path))
        import torch

        model.load_state_dict(torch.load(weights, weights_only=True))
        return model

    @staticmethod
    @contextlib.contextmanager
    def get_context(model: Any, *models: Any) -> Iterator[None]:
        """What predictions should run in: without gradients, and with the number of threads asked for."""
        import torch

        wanted = [
            each.description["threads"] for each in (model, *models) if isinstance(each, OptimizedModel)
        ]
        before = torch.get_num_threads()
        with torch.inference_mode():
            try:
                if any(wanted):
                    torch.set_num_threads(max(wanted))
                yield
            finally:
                torch.set_num_threads(before)

    def close(self) -> None:
        """Remove what the last search made; models that were got from it no longer load."""
        if self._workspace is not None:
            self._workspace.close()
        self._workspace = self._result = None


def _make(
    model: Any,
    name: str,
    samples: Samples,
    threads: int | None,
    *,
    validation: Samples | None = None,
    metric: Metric | None = None,
    goal: Goal | None = None,
) -> OptimizedModel:
    method = _method(name)
    workspace = Workspace()
    try:
        plan = Plan(
            source=_keep(model, workspace),
            calibration=samples,
            validation=validation,
            metric=metric,
            metric_place=_keep_metric(metric, workspace),
            goal=goal or Goal(),
            threads=threads or 0,
        )
        row = convert_for(plan, workspace, method)
        return OptimizedModel.of_row(row, threads=threads or 0, held=workspace)
    except BaseException:
        workspace.close()
        raise


def _keep(model: Any, workspace: Workspace) -> Source:
    """A model in memory as a file that processes of their own can load, classes of scripts included."""
    path = workspace.folder("source") / "model.pkl"
    path.write_bytes(_pickler().dumps(model))
    return Source("pickle", str(path))


def _keep_metric(metric: Metric | None, workspace: Workspace) -> str:
    if metric is None or metric.name in METRICS:
        return metric.name if metric else ""
    path = workspace.folder("source") / "metric.pkl"
    path.write_bytes(_pickler().dumps(metric))
    return f"pickle:{path}"


def _pickler() -> Any:
    try:
        import cloudpickle
    except ImportError as error:
        raise MissingDependencyError(
            "a model in memory needs cloudpickle", hint="pip install 'cloister[optimize]'"
        ) from error
    return cloudpickle


def _metric(metric: Callable[[Any, Any], Any] | str | None, direction: str) -> Metric | None:
    if direction not in ("max", "min"):
        raise ConfigError(f"direction {direction!r} is neither max nor min")
    if metric is None:
        return None
    if isinstance(metric, str):
        return find_metric(metric)
    function = metric

    def score(outputs: Any, targets: Any) -> float:
        import torch

        return float(function(torch.from_numpy(outputs), torch.from_numpy(targets)))

    name = getattr(function, "__name__", type(function).__name__)
    return Metric(f"user's {name}", score, higher_is_better=direction == "max")


def _wanted(
    includes: Iterable[str] | None, accelerator: Iterable[str | None] | None, precision: Iterable[str] | None
) -> tuple[str, ...]:
    """The methods of these accelerators and precisions, besides those named; empty: the mode decides."""
    named = tuple(includes or ())
    if accelerator is None and precision is None:
        return named
    kinds = None if accelerator is None else {_kind(each) for each in accelerator}
    precisions = None if precision is None else set(precision)
    fitting = (
        method.name
        for method in METHODS
        if (kinds is None or method.kind in kinds) and (precisions is None or method.precision in precisions)
    )
    wanted = (*named, *fitting)
    if not wanted:
        raise ConfigError("no method is of these accelerators and precisions", hint="leave one of them out")
    return wanted


def _kind(accelerator: str | None) -> str:
    if accelerator is None:
        return "torch"
    kind = _KINDS.get(accelerator)
    if kind is None:
        raise ConfigError(f"there is no accelerator {accelerator!r}", hint=", ".join(_KINDS))
    return kind


def _name(accelerator: str | None, precision: str) -> str:
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    _kind(accelerator)
    word = {None: "torch", "jit": "inductor"}.get(accelerator, accelerator)
    return find_method(f"{word}_{precision}")


def _method(name: str) -> Method:
    return next(method for method in METHODS if method.name == name)

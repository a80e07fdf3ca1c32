"""``cloister optimize``: find the fastest form of a model that is still good enough, ready to seal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.options import Json
from cloister.cli.output import Plain, console, errors, show_json
from cloister.errors import ConfigError, PolicyDenied

if TYPE_CHECKING:
    from cloister.optimize.result import Result, Row
    from cloister.optimize.search import Plan
    from cloister.optimize.workspace import Workspace

EPILOG = (
    "Exit codes: 0 a method fits, 2 usage, configuration, or a model that cannot be loaded, 3 no method fits "
    "the constraints, 4 malformed data, 130 interrupted."
)
INTERRUPTED = 130


def optimize(
    model: Annotated[
        str,
        typer.Argument(
            help="module:factory, or a file: .pt2, TorchScript, .onnx, OpenVINO .xml, SavedModel folder, "
            ".keras, XGBoost, LightGBM, or scikit-learn's .joblib."
        ),
    ],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Real inputs to calibrate with: .npz, or module:function.")
    ],
    validate: Annotated[
        str | None,
        typer.Option("--validate", help="Inputs with targets to judge by: .npz, or module:function."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="accuracy, top5, f1, r2, rmse, mae, or module:function of outputs and targets "
            "(with - before it: lower is better)."
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        str | None, typer.Option(help="How much of the metric may be lost: 0.5% (points), or 0.005.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="Median time of one request at most: 20ms, 1.5s.")
    ] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Likeness to the original's outputs; 0.9 where no drop is limited."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What is best: throughput, latency, memory or size.")
    ] = "throughput",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Archive (.mar) of the best to write.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Model name in the archive; the file's name if not given.")
    ] = None,
    version: Annotated[str, typer.Option(help="Model version in the archive.")] = "1.0",
    config_file: Annotated[
        Path | None,
        typer.Option("--config-file", help="YAML settings for the archive, such as input: and output:."),
    ] = None,
    extra_files: Annotated[
        list[str] | None,
        typer.Option(
            "--extra-files",
            "--extra-file",
            help="Files for the archive, such as labels, folders or patterns, by commas; may be repeated.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML report with plots to write.")] = None,
    search_mode: Annotated[
        str, typer.Option("--search", help="default, or all (compilers, layouts).")
    ] = "default",
    include: Annotated[list[str] | None, typer.Option(help="Try this method only; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave this method out; may be repeated.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of each method; 0: all cores.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once, for throughput.")] = 16,
    budget: Annotated[str | None, typer.Option(help="Time for the whole search: 6m.")] = None,
    method_limit: Annotated[str, typer.Option(help="Time for one method.")] = "30m",
    accuracy_aware: Annotated[
        bool, typer.Option(help="Try quantization that watches the metric in any case.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try engines, precisions and streams on a model with real data, and pack the best one.

    Every method runs in a process of its own; one that fails is a row of the table.
    """
    from cloister.optimize.data import load_metric, load_samples
    from cloister.optimize.quantities import parse_drop, parse_duration
    from cloister.optimize.result import OBJECTIVES, Goal
    from cloister.optimize.search import Plan
    from cloister.optimize.source import parse_source
    from cloister.optimize.workspace import Workspace

    if objective not in OBJECTIVES:
        raise ConfigError(f"objective {objective!r} is none of {', '.join(OBJECTIVES)}")
    _check_target(output, report)
    packing = _Packing.of(output, name, version, config_file, extra_files or [])
    with _working_folder_on_path():
        source = parse_source(model)
        calibration = load_samples(data)
        plan = Plan(
            source=source,
            calibration=calibration,
            validation=load_samples(validate) if validate else None,
            metric=load_metric(metric) if metric else None,
            metric_place=metric or "",
            goal=Goal(
                objective=objective,
                max_drop=parse_drop(max_accuracy_drop) if max_accuracy_drop else None,
                max_latency_s=parse_duration(latency) if latency else None,
                min_cosine=min_cosine,
            ),
            search_mode=search_mode,
            includes=tuple(include or ()),
            excludes=tuple(exclude or ()),
            threads=threads,
            concurrency=concurrency,
            method_limit_s=parse_duration(method_limit),
            budget_s=parse_duration(budget) if budget else None,
            accuracy_aware=accuracy_aware,
        )
        with _ended_by_signal(), Workspace() as workspace:
            result = _search(plan, workspace, quiet=as_json)
            document = result.to_mapping()
            if report is not None:
                _write_report(result, report, model)
                document["report"] = str(report)
            if packing is not None and result.best(servable=True) is not None:
                document["archive"] = packing.pack(result)
    if as_json:
        show_json(document)
    else:
        _tell(result, document)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if result.best(servable=output is not None) is None:
        raise PolicyDenied("no method fits the constraints", reasons=_near_misses(result))


@dataclass(frozen=True, slots=True)
class _Packing:
    """What the best is packed with, looked at before an hour is spent on the search."""

    target: Path
    name: str
    version: str
    settings: dict[str, Any]
    extra_files: list[Path]

    @classmethod
    def of(
        cls, target: Path | None, name: str | None, version: str, config_file: Path | None, extra: list[str]
    ) -> _Packing | None:
        from cloister.serve.direct.outputs import read_labels
        from cloister.serve.direct.pack import files_of, read_served, read_settings
        from cloister.serve.pack import expand_files
        from cloister.serve.sources import is_model_name

        if target is None:
            return None
        name = name or target.name.partition(".")[0]
        if not is_model_name(name):
            raise ConfigError(f"no model can be called {name!r}", hint="give --name")
        settings, files = read_settings(config_file), expand_files(extra)
        # Any engine will do: it is the other sections that matter here.
        served = read_served({**settings, "engine": {"kind": "any", "file": "any"}})
        labels = "" if served.output.top is None else served.output.top.labels
        if labels:
            packed = files_of(files)
            if labels not in packed:
                raise ConfigError(f"output.top.labels: no file {labels!r}", hint="give it with --extra-files")
            read_labels(packed.read(labels))
        settings.pop("engine", None)
        return cls(target, name, version, settings, files)

    def pack(self, result: Result) -> str:
        """Write the archive of the best form that can be served; returns its path."""
        from cloister.optimize.deploy import engine_options, main_file
        from cloister.serve.direct.pack import pack_model

        row = result.best(servable=True)
        assert row is not None
        assert row.method is not None
        model = main_file(row)
        pack_model(
            self.target,
            name=self.name,
            version=self.version,
            model=model,
            kind=row.method.kind,
            options=engine_options(row, result.goal.objective),
            settings=self.settings,
            extra_files=[*self.extra_files, *model.parent.glob("*.data")],
        )
        return str(self.target)


def _search(plan: Plan, workspace: Workspace, *, quiet: bool) -> Result:
    """Run the search, with a table that grows on standard error's terminal or on none."""
    from rich.live import Live

    from cloister.optimize.search import search
    from cloister.optimize.table import render_table

    if quiet or not console.is_terminal:
        return search(plan, workspace)
    rows: list[Row] = []

    def table(now: str = "") -> Any:
        return render_table(rows, concurrency=plan.concurrency, metric=plan.metric, now=now)

    with Live(table("starting"), console=console, auto_refresh=False, transient=True) as live:

        def on_row(row: Row) -> None:
            rows.append(row)
            live.update(table(), refresh=True)

        def progress(method: str, words: str) -> None:
            live.update(table(f"{method}: {words}"), refresh=True)

        return search(plan, workspace, on_row=on_row, progress=progress)


def _tell(result: Result, document: dict[str, Any]) -> None:
    from cloister.optimize.table import WIDTH, render_reasons, render_table

    best = result.best()
    name = best.name if best else ""
    table = render_table(result.rows, concurrency=result.concurrency, metric=result.metric, best=name)
    wide = console if console.is_terminal else Plain(width=WIDTH)
    wide.print(table)
    for line in render_reasons(result.rows):
        console.print(line, style="dim")
    if best is not None:
        console.print(f"best by {result.goal.objective}: {name}, after {result.took_s:.0f} s")
        if result.metric is None:
            console.print("no metric: its outputs were only compared with the original's", style="yellow")
    for key in ("archive", "report"):
        if key in document:
            console.print(f"wrote {document[key]}")
    if result.interrupted:
        errors.print("interrupted: what was not tried yet is missing", style="yellow")


def _write_report(result: Result, path: Path, model: str) -> None:
    from cloister.optimize.report import render_report

    try:
        path.write_text(render_report(result, f"Optimization of {model}"), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _near_misses(result: Result) -> tuple[str, ...]:
    """Why each method that works was not taken."""
    return tuple(
        f"{row.name}: {'; '.join(result.objections(row)) or 'has no form that can be served'}"
        for row in result.rows
        if row.measured is not None
    )


def _check_target(*paths: Path | None) -> None:
    """Whether there is room for the results, before an hour is spent on them."""
    for path in paths:
        if path is not None and not path.resolve().parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} for {path.name}")


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """Modules of the user are found in the working folder, as with ``python -m``."""
    import sys

    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that the private folder goes."""

    def end(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

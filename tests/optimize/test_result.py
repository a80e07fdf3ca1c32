"""The best row is chosen by what the user wants, and never against it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from cloister.errors import ConfigError
from cloister.optimize.deploy import engine_options
from cloister.optimize.job import Measured, Status, Timing
from cloister.optimize.methods import METHODS, Method
from cloister.optimize.metrics import METRICS
from cloister.optimize.quantities import parse_drop
from cloister.optimize.report import render_report
from cloister.optimize.result import Goal, Result, Row

INT8 = next(method for method in METHODS if method.name == "openvino_int8")


def row(
    name: str,
    p50_ms: float,
    per_s: float,
    *,
    metric: float | None = None,
    cosine: float = 1.0,
    method: Method | None = None,
) -> Row:
    """A row of a method that works."""
    measured = Measured(
        mean_ms=p50_ms, p50_ms=p50_ms, p99_ms=p50_ms, calls=9, memory_bytes=1 << 20, evaluated_rows=8,
        timings=(Timing(1, 1, per_s / 2), Timing(2, 1, per_s)), input_names=("x",),
    )  # fmt: skip
    drop = None if metric is None else 0.9 - metric
    return Row(
        name, Status.SUCCESSFUL, measured=measured, metric=metric, drop=drop, cosine=cosine, size_bytes=5,
        method=method,
    )  # fmt: skip


ROWS = (
    row("original", 30, 30, metric=0.9),
    row("accurate", 12, 100, metric=0.896),
    row("fast", 8, 200, metric=0.88, cosine=0.95),
    Row("broken", Status.FAIL_TO_CONVERT, "ValueError: <b>no</b>"),
)


@pytest.mark.parametrize(
    ("goal", "best"),
    [
        (Goal(), "fast"),
        (Goal(max_drop=parse_drop("0.5%")), "accurate"),
        (Goal(max_drop=parse_drop("0.1%")), "original"),
        (Goal(max_latency_s=0.010), "fast"),
        (Goal("latency", min_cosine=0.99), "accurate"),
        (Goal(max_drop=parse_drop("0.5%"), max_latency_s=0.010), None),
    ],
)
def test_the_best_under_constraints(goal: Goal, best: str | None) -> None:
    """Half a percent of accuracy means half a point."""
    found = Result(ROWS, goal, METRICS["accuracy"]).best()
    assert (found.name if found else None) == best


def test_a_way_to_run_that_is_too_slow_is_not_the_best() -> None:
    """Two streams do more together, and each takes longer than the caller may wait."""
    two = (Timing(1, 1, 80, 8), Timing(2, 1, 100, 16))
    for limit_s, streams in ((0.010, 1), (0.020, 2), (None, 2), (0.001, 2)):
        found = row("fast", 8, 0, method=INT8)
        assert found.measured is not None
        measured = msgspec.structs.replace(found.measured, timings=two)
        found = replace(found, measured=measured, folder=Path("x"), max_latency_s=limit_s)
        assert engine_options(found)["streams"] == streams
        assert found.to_mapping()["timings"][1]["p50_ms"] == 16


def test_what_is_less_exact_is_no_measure() -> None:
    """Where neither the original nor an exact form works, INT8 is not compared with itself: it loses."""
    rows = (
        Row("original", Status.FAIL_TO_FORWARD),
        replace(row("openvino_int8", 1, 900, method=INT8), cosine=None),
    )
    for goal in (Goal(), Goal(max_drop=parse_drop("0.5%"))):
        found = Result(rows, goal, METRICS["accuracy"])
        assert found.original is None
        assert found.best() is None


def test_outputs_that_nobody_judges_must_be_alike() -> None:
    """Without a metric, a method whose outputs are something else is not chosen, unless asked for."""
    rows = (row("original", 30, 30), row("wild", 1, 900, cosine=0.4), row("dead", 1, 900, cosine=0.0))
    assert Result(rows, Goal()).best() is rows[0]
    assert Result(rows, Goal(min_cosine=0.3)).best() is rows[1]


def test_a_drop_that_is_not_known_is_an_objection() -> None:
    """A row without a metric does not pass a limit for its drop."""
    rows = (row("original", 30, 30, metric=0.9), row("unknown", 1, 900))
    result = Result(rows, Goal(max_drop=parse_drop("1%")), METRICS["accuracy"])
    assert result.objections(rows[1]) == ["its accuracy is not known"]


def test_plain_values_are_json() -> None:
    """Every row is there, with what speaks against it."""
    document = json.loads(json.dumps(Result(ROWS, Goal(max_latency_s=0.01)).to_mapping()))
    assert document["best"] == "fast"
    assert document["best_servable"] is None
    assert [each["method"] for each in document["methods"]] == ["original", "accurate", "fast", "broken"]
    assert document["methods"][0]["objections"] == ["takes 30 ms, over 10 ms"]


def test_settings_for_the_server() -> None:
    """Throughput is served with the streams that had it, latency with one."""
    from dataclasses import replace
    from pathlib import Path

    served = replace(row("openvino_int8", 8, 200, method=INT8), folder=Path("/"), file="model.xml")
    assert engine_options(served) == {"precision": "int8", "streams": 2, "rows": 1}
    assert engine_options(served, "latency")["streams"] == 1
    with pytest.raises(ConfigError, match="no form"):
        engine_options(ROWS[0])


def test_what_a_sandbox_forbids_is_not_served() -> None:
    """A method that compiles when it is loaded may be the best of all, but not the best to serve."""
    from dataclasses import replace
    from pathlib import Path

    inductor = next(method for method in METHODS if method.compiled)
    rows = (
        replace(row("inductor", 1, 900, method=inductor), folder=Path("/"), file="model.pt2"),
        replace(row("int8", 8, 200, method=INT8), folder=Path("/"), file="model.xml"),
    )
    result = Result(rows, Goal())
    assert (result.best(), result.best(servable=True)) == rows


def test_the_report_needs_no_network_and_escapes() -> None:
    """One page with plots: no script, no address but the SVG's namespace, no markup of others."""
    page = render_report(Result(ROWS, Goal(), METRICS["accuracy"], machine={"cores": "2"}), "a <model>")
    assert page.count("<svg") == 4
    assert "<b>no</b>" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "a &lt;model&gt;" in page
    assert "<script" not in page
    assert page.count("http") == page.count('xmlns="http://www.w3.org/2000/svg"') + page.count("http-equiv")
    assert "6.67 times" in page


def test_a_report_of_failures_only() -> None:
    """It says that nothing fits."""
    assert "No method fits" in render_report(Result(ROWS[3:], Goal()), "model")

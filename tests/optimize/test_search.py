"""A search tries what can be tried, says what became of each method, and picks the best that fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloister.errors import ConfigError
from cloister.optimize.data import load_metric
from cloister.optimize.job import Source, Status
from cloister.optimize.quantities import parse_drop
from cloister.optimize.result import Goal, Result, Row
from cloister.optimize.samples import Samples, gather
from cloister.optimize.search import Plan, search
from cloister.optimize.workspace import Workspace
from tests.optimize import models


def plan(factory: str, data: Samples, **changes: object) -> Plan:
    """A quick search of a model of the tests."""
    values = {"latency_samples": 10, "throughput_s": 0.2, "concurrency": 4, "threads": 1}
    source = Source("factory", f"tests.optimize.models:{factory}")
    return Plan(source=source, calibration=data, **(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[Row]]:
    """A search over a convolution net, with accuracy."""
    pytest.importorskip("nncf")
    data = gather(models.pictures())
    rows: list[Row] = []
    with Workspace(tmp_path_factory.mktemp("work")) as workspace:
        result = search(
            plan(
                "picture_net",
                data,
                validation=data,
                metric=load_metric("accuracy"),
                metric_place="accuracy",
                goal=Goal(max_drop=parse_drop("5%")),
                includes=("openvino_fp32", "openvino_int8", "openvino_int8_accuracy", "openvino_bf16"),
                excludes=("openvino_bf16",),
            ),
            workspace,
            on_row=rows.append,
        )
        assert {path.stat().st_mode & 0o77 for path in workspace.path.iterdir() if path.is_dir()} == {0}
    return result, rows


def test_rows_come_as_they_are_done(found: tuple[Result, list[Row]]) -> None:
    """The original is first, each method has one row, and what is excluded has none."""
    result, rows = found
    assert tuple(rows) == result.rows
    names = [row.name for row in rows]
    assert names == ["original", "openvino_fp32", "openvino_int8", "openvino_int8_accuracy"]


def test_what_is_measured(found: tuple[Result, list[Row]]) -> None:
    """A method that works has all figures; its outputs are like the original's, its accuracy too."""
    result, _ = found
    row = result.row("openvino_fp32")
    assert row.status is Status.SUCCESSFUL, row.reason
    assert row.cosine == pytest.approx(1, abs=1e-4)
    assert row.metric == result.row("original").metric == 1.0
    mapping = row.to_mapping()
    assert mapping["latency_ms"]["p50"] > 0
    assert mapping["throughput_per_s"] > 0
    assert mapping["memory_bytes"] > mapping["size_bytes"] > 0
    assert mapping["evaluated_rows"] == 64


def test_int8_is_made_with_real_data(found: tuple[Result, list[Row]]) -> None:
    """It is smaller, and nearly as accurate; so nothing needs to be repaired."""
    result, _ = found
    row = result.row("openvino_int8")
    assert row.status is Status.SUCCESSFUL, row.reason
    assert row.drop is not None
    assert row.drop <= 0.05
    assert row.cosine is not None
    assert 0.99 < row.cosine < 1
    repaired = result.row("openvino_int8_accuracy")
    assert (repaired.status, repaired.reason) == (Status.NOT_TRIED, "openvino_int8 is accurate enough")


def test_the_best_is_of_those_that_fit(found: tuple[Result, list[Row]]) -> None:
    """Other constraints, another best; one that nothing fits leaves none."""
    result, _ = found
    best = result.best()
    assert best is not None
    assert all(
        row.best_timing.per_s <= best.best_timing.per_s
        for row in result.rows
        if row.best_timing and best.best_timing
    )
    smallest = result.with_goal(Goal("size")).best()
    assert smallest is not None
    assert smallest.size_bytes == min(row.size_bytes for row in result.rows if row.size_bytes)
    assert result.with_goal(Goal(max_latency_s=1e-9)).best() is None


def test_mappings_of_inputs_are_quantized() -> None:
    """A transformer that takes tokens and a mask by name, of changing lengths, works in INT8."""
    pytest.importorskip("nncf")
    data = gather(models.sentences())
    with Workspace() as workspace:
        result = search(plan("two_inputs", data, includes=("openvino_int8",)), workspace)
        row = result.row("openvino_int8")
        assert row.status is Status.SUCCESSFUL, row.reason
        assert row.measured is not None
        assert row.measured.input_names == ("input_ids", "attention_mask")
        assert row.folder is not None
        assert (row.folder / row.file).is_file()


def test_failures_are_rows_and_not_the_end() -> None:
    """A method whose engine fails is a row with its reason; those after it are tried."""
    pytest.importorskip("openvino")
    data = gather([np.zeros((4, 1, 16, 16), np.float32)])
    with Workspace() as workspace:
        result = search(
            plan("picture_net", data, includes=("openvino_fp32",), method_limit_s=0.01), workspace
        )
    assert [row.status for row in result.rows] == [Status.TIMED_OUT] * 2
    assert result.best() is None


def test_a_metric_that_fails_is_a_row(tmp_path: Path) -> None:
    """A user's own function may raise anything: the search goes on, and says what."""
    data = gather(models.pictures())
    place = "tests.optimize.models:confused"
    judged = plan(
        "picture_net", data, validation=data, metric=load_metric(place), metric_place=place,
        includes=("torch_bf16",),
    )  # fmt: skip
    with Workspace(tmp_path) as workspace:
        result = search(judged, workspace)
    assert [row.status for row in result.rows] == [Status.FAIL_TO_FORWARD] * 2
    assert all("IndexError: there is no such class" in row.reason for row in result.rows)


def test_no_time_left_is_a_status() -> None:
    """What the budget does not suffice for is not tried."""
    data = gather([np.zeros((4, 1, 16, 16), np.float32)])
    with Workspace() as workspace:
        result = search(plan("picture_net", data, budget_s=0.5), workspace)
    assert {row.status for row in result.rows[1:]} == {Status.NOT_TRIED}
    assert {row.reason for row in result.rows[1:]} == {"the time is up"}


def test_a_model_that_is_none_ends_the_search() -> None:
    """Where not even the kind of model can be told, there is nothing to try."""
    with Workspace() as workspace, pytest.raises(ConfigError, match="no model"):
        search(plan("nothing", gather([np.zeros((1, 2))])), workspace)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"goal": Goal(max_drop=parse_drop("1%"))}, "metric"),
        ({"metric": load_metric("accuracy")}, "targets"),
        ({"includes": ("openvino_int4",)}, "no method"),
        ({"search_mode": "everything"}, "search mode"),
        ({"concurrency": 0}, "positive"),
    ],
)
def test_contradictions_are_refused_first(changes: dict[str, object], word: str, tmp_path: Path) -> None:
    """A plan that cannot work is refused before any process starts."""
    with Workspace(tmp_path) as workspace, pytest.raises(ConfigError, match=word):
        search(plan("sleeper", gather([np.zeros((1, 2))]), **changes), workspace)

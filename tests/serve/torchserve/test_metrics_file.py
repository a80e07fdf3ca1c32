"""TorchServe's metrics file gives handlers the metrics that they ask for by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve.frames import MetricDefinition
from cloister.serve.torchserve.metrics_file import read_model_metrics
from tests.serve.handlers import ask, import_state, load

FILE = """
dimensions:
  - &model_name "ModelName"
ts_metrics:
  counter:
    - name: Requests2XX
      unit: Count
      dimensions: [x]
model_metrics:
  counter:
    - name: PreprocessCallCount
      unit: count
      dimensions: [*model_name]
  gauge:
    - name: RequestBatchSize
      unit: count
      dimensions: [*model_name]
  histogram:
"""
HANDLER = """
from ts.metrics.metric_type_enum import MetricTypes
def handle(data, context):
    if data is None: return
    metric = context.metrics.get_metric("RequestBatchSize", MetricTypes.GAUGE)
    metric.add_or_update(value=len(data), dimension_values=[context.model_name])
    return ["ok"] * len(data)
"""


def test_model_metrics(tmp_path: Path) -> None:
    """What a file says of models is read, anchors resolved; what it says of the server is not of interest."""
    (tmp_path / "metrics.yaml").write_text(FILE)
    assert read_model_metrics(tmp_path / "metrics.yaml") == (
        MetricDefinition("PreprocessCallCount", "counter", "count", ["ModelName"]),
        MetricDefinition("RequestBatchSize", "gauge", "count", ["ModelName"]),
    )


def test_handler_finds_them(tmp_path: Path) -> None:
    """A handler that asks for a metric of the file gets it; without the file there is none."""
    (tmp_path / "metrics.yaml").write_text(FILE)
    with import_state():
        handler = load(tmp_path, HANDLER, metrics=read_model_metrics(tmp_path / "metrics.yaml"))
        assert ask(handler).body == b"ok"
        samples = {item.name: item for item in handler.take_metrics()}
        assert samples["RequestBatchSize"].dimensions == [("ModelName", "m")]
        assert ask(load(tmp_path, HANDLER)).status != 200


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "model_metrics: 5",
        "model_metrics: {timer: []}",
        "model_metrics: {gauge: [{unit: x}]}",
        "a: [",
    ],
)
def test_bad_files(tmp_path: Path, text: str) -> None:
    """A file of another form stops the start and is named; so is one that is missing."""
    (tmp_path / "metrics.yaml").write_text(text)
    for path in (tmp_path / "metrics.yaml", tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match=str(path)):
            read_model_metrics(path)

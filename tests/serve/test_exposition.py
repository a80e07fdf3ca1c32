"""The text of the metrics page."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from cloister.serve.exposition import Exposition
from cloister.serve.frames import MetricSample
from cloister.serve.machine import Machine
from cloister.serve.stats import ModelStats


def make(*models: ModelStats, machine: bool = False) -> Exposition:
    return Exposition(
        lambda: models,
        lambda: [0, 0, 5, 0, 4, 3],
        loads=lambda: [("W-9000-m_1.0", 1.5)],
        is_default=lambda stats: stats.version == "1.0",
        machine=Machine() if machine else None,
        host="h",
    )


def busy() -> ModelStats:
    stats = ModelStats("m", "1.0")
    stats.count(200, 0.004)
    stats.count(503, 0.002)
    stats.queue.observe(0.001)
    stats.batch.observe(0.003)
    stats.inference.observe(0.002)
    return stats


def test_prometheus_reads_it() -> None:
    """A Prometheus parser takes the whole page, and finds what was counted."""
    families = {
        f.name: f for f in text_string_to_metric_families(make(busy(), machine=True).render().decode())
    }
    assert {s.labels["status"]: s.value for s in families["cloister_requests"].samples}["5xx"] == 1.0
    buckets = families["cloister_request_seconds"].samples
    assert [s.value for s in buckets if s.name.endswith("_count")] == [2.0]
    assert next(s.value for s in buckets if s.labels.get("le") == "0.0025") == 1.0
    assert {"CPUUtilization", "MemoryUsed", "DiskUsage"} <= set(families)


def test_torchserves_names() -> None:
    """TorchServe's names have its labels, units and form of a line."""
    page = make(busy(), ModelStats("m", "2.0")).render().decode()
    assert 'Requests2XX{Level="Host",Hostname="h",} 5.0\n' in page
    labels = 'model_name="m",model_version="default",hostname="h",'
    assert f"ts_inference_requests_total{{{labels}}} 2.0\n" in page
    assert 'model_version="2.0",hostname="h",} 0.0\n' in page
    found = re.search(rf"ts_inference_latency_microseconds\{{{labels}\}} (\S+)", page)
    assert found is not None
    assert abs(float(found[1]) - 6000) < 1
    assert 'WorkerLoadTime{WorkerName="W-9000-m_1.0",Level="Host",Hostname="h",} 1500.0\n' in page
    assert 'QueueTime{Level="Host",Hostname="h",} 1.0\n' in page
    assert 'WorkerThreadTime{Level="Host",Hostname="h",} 1.0\n' in page


def test_means_are_of_the_time_since_the_last_reading() -> None:
    """QueueTime is the mean of what came since the page was read before, and stays where nothing came."""
    stats = busy()
    page = make(stats)

    def queue_time() -> float:
        found = re.search(r"^QueueTime\{.*\} (\S+)$", page.render().decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])

    assert queue_time() == 1.0
    stats.queue.observe(0.004, 2)
    assert queue_time() == 4.0
    assert queue_time() == 4.0


def test_picked_by_name() -> None:
    """Only the families that were asked for are written."""
    page = make(busy()).render(["Requests4XX", "cloister_queue_seconds", "cloister_requests_total"]).decode()
    names = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    assert names == {"Requests4XX", "cloister_queue_seconds", "cloister_requests_total"}
    assert make(busy()).render(["nothing"]) == b""


def test_handlers_metrics() -> None:
    """A handler's metrics are there with the host added; it cannot take a name of the server."""
    stats = busy()
    samples = [
        MetricSample("HandlerTime", "gauge", "ms", [("ModelName", "m"), ("Level", "Model")], 1.5),
        MetricSample("Sizes", "histogram", "B", [], 0.01),
        MetricSample("Requests2XX", "counter", "x", [], 99.0),
        MetricSample("cloister_workers", "gauge", "x", [], 99.0),
        MetricSample("Quote", "gauge", 'a"b\n', [("text", 'say "hi"\n')], 1.0),
    ]
    stats.measured.take(samples)
    page = make(stats).render().decode()
    assert 'HandlerTime{ModelName="m",Level="Model",Hostname="h",} 1.5\n' in page
    assert 'Sizes_bucket{Hostname="h",le="0.01",} 1.0\n' in page
    assert "99.0" not in page
    assert 'Quote{text="say \\"hi\\"\\n",Hostname="h",} 1.0\n' in page
    assert list(text_string_to_metric_families(page))

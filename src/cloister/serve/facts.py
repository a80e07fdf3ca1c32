"""A model's facts as TorchServe's ``GET /models/{name}`` tells them.

Source: pytorch/serve 0.12, DescribeModelResponse.java, ApiUtils.createModelResponse.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cloister.serve.registry import Model
from cloister.serve.seat import WorkerView

_SHOWN = {"STARTING": "LOADING", "STOPPING": "UNLOADING"}
_HIDDEN = "SPARE"


def describe_model(model: Model, *, url: str, at_startup: bool) -> dict[str, Any]:
    """One version of a model.

    Args:
        url: where it came from.
        at_startup: the server started with it.
    """
    supervisor, config = model.supervisor, model.supervisor.config
    workers = [describe_worker(worker) for worker in supervisor.workers() if worker.status != _HIDDEN]
    waiting = supervisor.queued
    facts: dict[str, Any] = {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": url,
        "runtime": config.runtime,
        "minWorkers": config.min_workers,
        "maxWorkers": config.max_workers,
        "batchSize": config.batch_size,
        "maxBatchDelay": config.max_batch_delay_ms,
        "responseTimeout": round(config.response_timeout_s),
        "startupTimeout": round(config.startup_timeout_s),
        "maxRetryTimeoutInSec": config.max_retry_timeout_s,
        "clientTimeoutInMills": config.client_timeout_ms,
        "parallelType": config.parallel_type,
        "parallelLevel": config.parallel_level,
        "deviceType": config.device_type or ("gpu" if any(w["gpu"] for w in workers) else "cpu"),
    }
    if config.device_ids:
        facts["deviceIds"] = list(config.device_ids)
    return {
        **facts,
        "continuousBatching": config.continuous_batching,
        "useJobTicket": config.use_job_ticket,
        "useVenv": config.use_venv,
        "stateful": config.stateful,
        "sequenceMaxIdleMSec": config.sequence_max_idle_ms,
        "sequenceTimeoutMSec": config.sequence_timeout_ms,
        "maxNumSequence": config.max_sequences if config.stateful else 0,
        "maxSequenceJobQueueSize": config.max_sequence_queue if config.stateful else 0,
        "loadedAtStartup": at_startup,
        "workers": workers,
        "jobQueueStatus": {
            "remainingCapacity": max(0, config.max_queue - waiting),
            "pendingRequests": waiting,
        },
    }


def describe_worker(worker: WorkerView) -> dict[str, Any]:
    """One worker as ``GET /models/{name}`` shows it."""
    return {
        "id": str(worker.id),
        "startTime": render_moment(worker.started),
        "status": _SHOWN.get(worker.status, worker.status),
        "memoryUsage": worker.memory_bytes,
        "pid": worker.pid,
        "gpu": worker.gpu_id is not None and worker.gpu_id >= 0,
        "gpuUsage": "N/A",
    }


def render_moment(seconds: float) -> str:
    """UTC in TorchServe's form: ``2026-01-02T03:04:05.678Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

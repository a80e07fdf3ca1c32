"""What the workers of a model are started with, by the settings of the machine that they run on."""

from __future__ import annotations

from pathlib import Path

from cloister.serve.groups import WorkerGroups
from cloister.serve.model_config import ModelConfig
from cloister.serve.process import WorkerSpec
from cloister.serve.sandbox.plan import plan_for
from cloister.serve.torchserve.metrics_file import read_model_metrics
from cloister.settings import ServeSettings


def worker_spec(
    settings: ServeSettings,
    config: ModelConfig,
    *,
    name: str,
    version: str,
    model_dir: Path,
    handler: str,
    groups: WorkerGroups | None,
) -> WorkerSpec:
    """The same for a worker beside its frontend and for one on a host of its own.

    Raises:
        ConfigError: the settings name a file of metrics that cannot be used.
    """
    return WorkerSpec(
        name=name,
        version=version,
        model_dir=model_dir,
        handler=handler,
        protected=settings.mode == "protected",
        batch_size=config.batch_size,
        idempotent=config.idempotent,
        envelope=settings.service_envelope,
        metrics=read_model_metrics(Path(settings.metrics_config)) if settings.metrics_config else (),
        sandbox=plan_for(settings),
        groups=groups,
    )

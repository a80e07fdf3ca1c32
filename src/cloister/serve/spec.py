"""What the workers of a model are started with, by the settings of the machine that they run on."""

from __future__ import annotations

import re
from pathlib import Path

from cloister.errors import ConfigError
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
        ConfigError: the settings name a file of metrics, or an environment, that cannot be used.
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
        decode=settings.decode_requests,
        environment=_environment_of(settings),
    )


def _environment_of(settings: ServeSettings) -> str:
    pattern = settings.worker_environment
    if pattern and settings.mode == "protected":
        raise ConfigError("serve.worker_environment is for open mode: what it passes on is not measured")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"serve.worker_environment is no regular expression: {error}") from error
    return pattern

"""TorchServe's ``metrics.yaml``: the metrics that handlers find under their names before they make any.

Read by the frontend, once, and given to each worker.

Source: pytorch/serve 0.12, docs/metrics.md, section "Metrics configuration" (``model_metrics``).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cloister.errors import ConfigError, MalformedInput
from cloister.serve.frames import MetricDefinition
from cloister.serve.manifest import MAX_SETTINGS_BYTES, parse_settings


class _Entry(msgspec.Struct):
    name: str
    unit: str = ""
    dimensions: list[str] = []


def read_model_metrics(path: Path) -> tuple[MetricDefinition, ...]:
    """The ``model_metrics`` of a metrics file.

    Raises:
        ConfigError: it cannot be read, or does not have the form.
    """
    try:
        with path.open("rb") as file:
            document = parse_settings(file.read(MAX_SETTINGS_BYTES + 1))
        sections = msgspec.convert(document.get("model_metrics") or {}, dict[str, list[_Entry] | None])
    except OSError as error:
        raise ConfigError(f"serve.metrics_config: cannot read {path}: {error.strerror}") from error
    except (MalformedInput, msgspec.ValidationError) as error:
        raise ConfigError(f"serve.metrics_config: {path}: {error}") from error
    unknown = sections.keys() - {"counter", "gauge", "histogram"}
    if unknown:
        raise ConfigError(f"serve.metrics_config: {path}: no metric is a {sorted(unknown)[0]!r}")
    return tuple(
        MetricDefinition(entry.name, kind, entry.unit, entry.dimensions)
        for kind, entries in sections.items()
        for entry in entries or ()
    )

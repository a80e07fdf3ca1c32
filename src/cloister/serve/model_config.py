"""How one version of a model is served: ``ModelConfig``, and the order in which its four sources are merged.

From the weakest to the strongest:

1. the server's settings (``ModelConfig`` with their values, the ``base`` of a merge);
2. ``models={...}`` of a TorchServe ``config.properties``;
3. the archive's own YAML (``configFile`` of its manifest);
4. parameters of the call that registers the model.

One exception, as in TorchServe: where the archive names a usable pair of ``minWorkers`` and ``maxWorkers``,
``initial_workers`` of the call does not override it.

Like TorchServe, a source's value of the wrong type or out of range is passed over, with a warning; unknown
names belong to the handler and are left alone.

Source: pytorch/serve 0.12, docs/configuration.md "Config model", model-archiver/README.md "Config file".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from cloister.errors import ConfigError
from cloister.serve.log import log

ModelConfigs = Mapping[str, Mapping[str, Mapping[str, Any]]]
MAX_WORKERS = 1024
MAX_BATCH = 65_536
MAX_SECONDS = 86_400
AT_ONCE_S = 0.001
"""What a time limit of 0 means: nothing is in time."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Effective serving settings of one model version."""

    min_workers: int = 1
    max_workers: int = 1
    batch_size: int = 1
    max_batch_delay_ms: int = 100
    """Longest wait for a batch to fill while the workers are busy; an idle worker never waits."""
    response_timeout_s: float = 120.0
    startup_timeout_s: float = 120.0
    max_queue: int = 100
    handler: str = ""
    """Handler to use instead of the manifest's; empty means the manifest's."""
    runtime: str = "python"
    device_type: str = ""
    """``cpu`` or ``gpu``; empty means a GPU where torch sees one."""
    device_ids: tuple[int, ...] = ()
    parallel_type: str = ""
    parallel_level: int = 0
    max_retry_timeout_s: int = 300
    client_timeout_ms: int = 0
    """A request older than this is not computed; 0 means no such limit."""
    idempotent: bool = True
    """Whether a request of a worker that died may be run again on another."""
    cores: tuple[str, ...] = ()
    """One entry a worker: the cores that it is pinned to, such as ``0-3`` or ``0,2``."""
    continuous_batching: bool = False
    use_job_ticket: bool = False
    """Take a request only while a worker is free."""
    use_venv: bool = False
    stateful: bool = False
    """Requests of one sequence go to one worker, in order."""
    sequence_max_idle_ms: int = 0
    sequence_timeout_ms: int = 0
    max_sequences: int = 1
    max_sequence_queue: int = 1

    @classmethod
    def from_yaml(cls, document: Mapping[Any, Any], base: ModelConfig | None = None) -> ModelConfig:
        """``base`` (or the defaults) with what an archive's YAML says of the frontend."""
        return (base or cls()).merged(archive=document)

    @classmethod
    def from_properties(cls, entry: Mapping[str, Any], base: ModelConfig | None = None) -> ModelConfig:
        """``base`` (or the defaults) with one version's entry of ``models={...}``."""
        return (base or cls()).merged(properties=entry)

    def with_parameters(self, query: Mapping[str, str]) -> ModelConfig:
        """This configuration with the parameters of a registering call, which win."""
        return self.merged(parameters=query)

    def merged(
        self,
        *,
        properties: Mapping[str, Any] | None = None,
        archive: Mapping[Any, Any] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> ModelConfig:
        """This configuration as the base of the merge that the module describes."""
        changes = _read(properties or {}, _PROPERTIES, where="config.properties")
        named = _read(archive or {}, _YAML, where="the archive's configuration")
        low, high = named.get("min_workers", 0), named.get("max_workers", 0)
        usable = 0 < low <= high
        asked = _read_parameters(parameters or {})
        # A pair that is not one is as good as none: TorchServe then takes the caller's number.
        for field in ("min_workers", "max_workers"):
            (asked if usable else named).pop(field, None)
        merged: ModelConfig = msgspec.structs.replace(self, **{**changes, **named, **asked})
        if merged.max_workers < merged.min_workers:
            merged = msgspec.structs.replace(merged, max_workers=merged.min_workers)
        return merged


def _whole(low: int, high: int) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        return value if type(value) is int and low <= value <= high else None

    return read


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value <= MAX_SECONDS else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _word(*allowed: str) -> Callable[[Any], str | None]:
    def read(value: Any) -> str | None:
        return value if isinstance(value, str) and (not allowed or value in allowed) else None

    return read


def _ids(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 4096 for item in value):
        return tuple(value)
    return None


def _cores(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return tuple(str(item) for item in value)
    return None


Reader = tuple[str, Callable[[Any], Any]]
_COMMON: dict[str, Reader] = {
    "minWorkers": ("min_workers", _whole(1, MAX_WORKERS)),
    "maxWorkers": ("max_workers", _whole(1, MAX_WORKERS)),
    "batchSize": ("batch_size", _whole(1, MAX_BATCH)),
    "maxBatchDelay": ("max_batch_delay_ms", _whole(0, MAX_SECONDS * 1000)),
    "responseTimeout": ("response_timeout_s", _seconds),
    "startupTimeout": ("startup_timeout_s", _seconds),
}
_PROPERTIES: dict[str, Reader] = {
    **_COMMON,
    "runtimeType": ("runtime", _word("python", "python3", "LSP")),
    "handler": ("handler", _word()),
}
_YAML: dict[str, Reader] = {
    **_COMMON,
    "deviceType": ("device_type", _word("cpu", "gpu", "neuron")),
    "deviceIds": ("device_ids", _ids),
    "parallelType": ("parallel_type", _word("pp", "tp", "pptp", "custom")),
    "parallelLevel": ("parallel_level", _whole(1, MAX_WORKERS)),
    "maxRetryTimeoutInSec": ("max_retry_timeout_s", _whole(1, MAX_SECONDS)),
    "clientTimeoutInMills": ("client_timeout_ms", _whole(0, MAX_SECONDS * 1000)),
    "jobQueueSize": ("max_queue", _whole(1, 1 << 20)),
    "useJobTicket": ("use_job_ticket", _flag),
    "useVenv": ("use_venv", _flag),
    "continuousBatching": ("continuous_batching", _flag),
    "sequenceBatching": ("stateful", _flag),
    "sequenceMaxIdleMSec": ("sequence_max_idle_ms", _whole(0, MAX_SECONDS * 1000)),
    "sequenceTimeoutMSec": ("sequence_timeout_ms", _whole(0, MAX_SECONDS * 1000)),
    "maxNumSequence": ("max_sequences", _whole(1, 1 << 20)),
    "maxSequenceJobQueueSize": ("max_sequence_queue", _whole(1, 1 << 20)),
    "idempotent": ("idempotent", _flag),
    "cores": ("cores", _cores),
}


def _read(document: Mapping[Any, Any], readers: Mapping[str, Reader], *, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (field, read) in readers.items():
        if name not in document:
            continue
        value = read(document[name])
        if value is None:
            log.warning("model configuration: a value is passed over", where=where, name=name)
        else:
            found[field] = value
    torchrun = document.get("torchrun")
    if readers is _YAML and isinstance(torchrun, Mapping):
        level = _whole(1, MAX_WORKERS)(torchrun.get("nproc-per-node"))
        if level is not None:
            found["parallel_level"] = level
    if found.keys() & {"parallel_type", "parallel_level"}:
        log.warning("model configuration: parallelType and torchrun have no effect: a worker is one process")
    return found


def _read_parameters(query: Mapping[str, str]) -> dict[str, Any]:
    """Numbers that are not numbers mean the default, as in TorchServe."""
    found: dict[str, Any] = {}
    size = whole_parameter(query, "batch_size", 0)
    if 0 < size <= MAX_BATCH:
        found["batch_size"] = size
    delay = whole_parameter(query, "max_batch_delay", -1)
    if 0 <= delay <= MAX_SECONDS * 1000:
        found["max_batch_delay_ms"] = delay
    workers = whole_parameter(query, "initial_workers", -1)
    if workers >= 0:
        found["min_workers"] = found["max_workers"] = min(workers, MAX_WORKERS)
    for name in ("response_timeout", "startup_timeout"):
        seconds = whole_parameter(query, name, -1)
        if 0 <= seconds <= MAX_SECONDS:
            found[f"{name}_s"] = max(float(seconds), AT_ONCE_S)
    if query.get("handler"):
        found["handler"] = query["handler"]
    if query.get("runtime"):
        found["runtime"] = query["runtime"]
    return found


def whole_parameter(query: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of a query; ``default`` where there is none, or something else (Integer.parseInt)."""
    text = query.get(name, "")
    digits = text[1:] if text[:1] in ("-", "+") else text
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        return default
    value = int(text)
    return value if -(1 << 31) <= value < 1 << 31 else default


def read_model_configs(text: str) -> ModelConfigs:
    """``models={...}`` of ``config.properties``: entries by name and version.

    Raises:
        ConfigError: not JSON of that form.
    """
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, dict[str, dict[str, Any]]])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError("serve.model_configs is not JSON of {name: {version: {...}}}") from error

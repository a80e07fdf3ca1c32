"""Load the handler of an unpacked archive, as TorchServe does: a function, a module or a class.

Runs in the worker, before the first request.

Source: pytorch/serve 0.12, ts/model_loader.py and ts/service.py (order of attempts, messages).
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cloister.errors import MalformedInput, ModelFailed
from cloister.serve import torchserve
from cloister.serve.frames import MetricDefinition
from cloister.serve.handler import Handler
from cloister.serve.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_SETTINGS_BYTES,
    PACKAGES_FOLDER,
    check_name,
    parse_settings,
)
from cloister.serve.torchserve.context import Context
from cloister.serve.torchserve.metrics import MetricsCache, MetricTypes
from cloister.serve.torchserve.util import list_classes_from_module

Entry = Callable[[Any, Context], Any]


def load_handler(
    folder: Path,
    handler: str,
    *,
    name: str,
    version: str = "1.0",
    batch_size: int = 1,
    gpu_id: int | None = None,
    envelope: str = "",
    metrics: Sequence[MetricDefinition] = (),
    show_text: bool = False,
) -> Handler:
    """Import the handler from ``folder`` and initialize it.

    Args:
        handler: as the manifest names it: a module of the folder, one with ``:function``, or a built-in one.
        envelope: TorchServe's ``service_envelope``: body, json, kserve or kservev2.
        metrics: what ``context.metrics.get_metric`` finds from the start.
        show_text: put the text of exceptions into faults, and keep what handlers measure; open mode only,
            either may hold what a caller sent.
    Raises:
        ModelFailed: there is no such handler, or more than one. What the handler raises passes through.
    """
    torchserve.install()
    sys.path.insert(0, str(folder))
    if (folder / PACKAGES_FOLDER).is_dir():
        sys.path.insert(1, str(folder / PACKAGES_FOLDER))
    manifest = _manifest_document(folder, handler=handler, name=name, version=version)
    cache = MetricsCache(model_name=name, keep=show_text)
    for item in metrics:
        cache.add_metric_to_cache(item.name, item.unit, item.dimensions, MetricTypes(item.kind))
    context = Context(
        name,
        str(folder),
        manifest,
        batch_size,
        gpu_id,
        torchserve.VERSION,
        metrics=cache,
        model_yaml_config=_read_settings(folder, manifest),
    )
    entry, initialize = _entry_point(handler)
    if envelope:
        entry = _wrap(envelope, entry)
    initialize(context)
    return Handler(entry, context, show_text=show_text)


def _entry_point(handler: str) -> tuple[Entry, Callable[[Context], Any]]:
    module, function = _import_handler(handler)
    entry: Entry | None = getattr(module, function or "handle", None)
    if entry is not None:
        found = entry
        return found, lambda context: found(None, context)
    if function:
        raise ModelFailed(f"handler module has no function {function!r}")
    service = _sole_class(module)()
    if not hasattr(service, "handle"):
        raise ModelFailed("handler class has no method 'handle'")
    return service.handle, getattr(service, "initialize", lambda context: None)


def _import_handler(handler: str) -> tuple[ModuleType, str]:
    if not handler:
        raise ModelFailed("the archive names no handler, and none of the usual files is in it")
    file, _, function = handler.partition(":")
    name = file.removesuffix(".py").rpartition("/")[2]
    try:
        return importlib.import_module(name), function
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    try:
        return importlib.import_module(f"ts.torch_handler.{name}"), function
    except ModuleNotFoundError as error:
        if error.name != f"ts.torch_handler.{name}":
            raise
        raise ModelFailed(
            f"there is no handler {name[:128]!r}, in the archive or among the built-in ones"
        ) from error


def _sole_class(module: ModuleType) -> type:
    classes = list_classes_from_module(module)
    if len(classes) > 1:
        # A module may define its network beside its handler: the one that can handle is meant.
        classes = [item for item in classes if callable(getattr(item, "handle", None))]
    if len(classes) != 1:
        raise ModelFailed(f"handler module has {len(classes)} handler classes, expected 1, and no function")
    return classes[0]


def _wrap(envelope: str, entry: Entry) -> Entry:
    try:
        module = importlib.import_module(f"ts.torch_handler.request_envelope.{envelope}")
        (kind,) = list_classes_from_module(module)
    except (ModuleNotFoundError, ValueError) as error:
        raise ModelFailed(f"there is no request envelope {envelope[:64]!r}") from error
    wrapped: Entry = kind(entry).handle
    return wrapped


def _manifest_document(folder: Path, *, handler: str, name: str, version: str) -> dict[str, Any]:
    """What ``context.manifest`` is: the archive's own; without one, what is known, in the same form."""
    path = folder / MANIFEST_NAME
    loaded: Any = None
    if path.is_file():
        loaded = json.loads(path.read_bytes()[:MAX_MANIFEST_BYTES].removeprefix(b"\xef\xbb\xbf"))
    document: dict[str, Any] = loaded if isinstance(loaded, dict) else {"runtime": "python"}
    if not isinstance(document.get("model"), dict):
        document["model"] = {"modelName": name, "modelVersion": version, "handler": handler}
    return document


def _read_settings(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    name = manifest["model"].get("configFile")
    if not name:
        return {}
    try:
        check_name(str(name))
        with (folder / str(name)).open("rb") as file:
            return parse_settings(file.read(MAX_SETTINGS_BYTES + 1))
    except (MalformedInput, OSError) as error:
        raise ModelFailed("the archive's settings file cannot be read") from error

"""``model_snapshot`` of a ``config.properties``: which models to start with, and how.

KServe says so in this key, and TorchServe writes such a file itself whenever its models change. It is read
here, and never written::

    {"name": "startup.cfg", "modelCount": 1, "models": {"mnist": {"1.0": {
        "defaultVersion": true, "marName": "mnist.mar", "minWorkers": 1, "maxWorkers": 5, "batchSize": 1,
        "maxBatchDelay": 100, "responseTimeout": 120}}}}

Source: pytorch/serve 0.12, SnapshotManager.java, ModelManager.registerAndUpdateModel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from cloister.errors import ConfigError

_FORM = '{"models": {"name": {"version": {"marName": "file.mar", ...}}}}'


class _Document(msgspec.Struct):
    models: dict[str, dict[str, dict[str, Any]]] = {}


class Snapshot(NamedTuple):
    """What a snapshot says, in the words of two other keys."""

    load_models: list[str]
    """``name=file``; the default version of each name comes first."""
    models: dict[str, dict[str, dict[str, Any]]]


def read_snapshot(text: str) -> Snapshot:
    """The snapshot in a value of ``model_snapshot``.

    Raises:
        ConfigError: it is none, or a model in it has no archive.
    """
    try:
        found = msgspec.json.decode(text, type=_Document).models
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"model_snapshot: {str(error)[:120]}", hint=_FORM) from error
    entries: list[str] = []
    for name, versions in found.items():
        default_first = sorted(versions.items(), key=lambda item: item[1].get("defaultVersion") is not True)
        for version, facts in default_first:
            archive = facts.get("marName")
            if not isinstance(archive, str) or not archive:
                raise ConfigError(f"model_snapshot: {name[:60]} {version[:60]} has no marName", hint=_FORM)
            entries.append(f"{name}={archive}")
    return Snapshot(entries, found)

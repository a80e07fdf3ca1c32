"""The chosen method as files that the server loads without a handler: the model, and its settings."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.errors import ConfigError
from cloister.optimize.result import Result, Row

CONFIG = "model-config.yaml"


@dataclass(frozen=True)
class Deployment:
    """What goes into an archive."""

    files: tuple[Path, ...]
    config: Path


def engine_settings(row: Row, *, objective: str = "throughput") -> dict[str, Any]:
    """The ``engine`` section of an archive's settings for a row.

    Raises:
        ConfigError: the row has no form that can be served.
    """
    method, timing = row.method, row.best_timing
    if method is None or timing is None or row.folder is None:
        raise ConfigError(f"{row.name} has no form that can be served", hint="choose another method")
    settings: dict[str, Any] = {"kind": method.kind, "file": row.file, "precision": method.precision}
    if objective == "latency":
        settings |= {"streams": 1, "rows": 1}
    else:
        settings |= {"streams": timing.streams, "rows": timing.rows}
    if method.compiled:
        settings["compiled"] = True
    return settings


def prepare(row: Row, result: Result, folder: Path) -> Deployment:
    """Write the settings beside links to the model's files.

    The settings are JSON, which is YAML as well.
    """
    import json

    assert row.folder is not None
    engine = engine_settings(row, objective=result.goal.objective)
    rows = engine["rows"] if result.goal.objective != "latency" else 1
    document = {"engine": engine, "batchSize": max(rows, engine["streams"]), "minWorkers": 1, "maxWorkers": 1}
    config = folder / CONFIG
    config.write_text(json.dumps(document, indent=2) + "\n")
    files = tuple(sorted(path for path in row.folder.iterdir() if path.is_file()))
    return Deployment(files, config)


def copy_model(row: Row, folder: Path) -> None:
    """Copy the model's files, links resolved, into a folder of the user's."""
    if row.folder is None:
        raise ConfigError(f"{row.name} has no files of its own")
    folder.mkdir(parents=True, exist_ok=True)
    for path in row.folder.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)

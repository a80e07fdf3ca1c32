"""The chosen method as what an archive without a handler says of it: the model's file and its engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cloister.errors import ConfigError
from cloister.optimize.result import Objective, Row


def engine_options(row: Row, objective: Objective = "throughput") -> dict[str, Any]:
    """The ``engine`` section of an archive's settings, besides ``kind`` and ``file``.

    Raises:
        ConfigError: the row has no form that can be served.
    """
    method, timing = row.method, row.best_timing
    if method is None or timing is None or row.folder is None:
        raise ConfigError(f"{row.name} has no form that can be served", hint="choose another method")
    streams, rows = (1, 1) if objective == "latency" else (timing.streams, timing.rows)
    options: dict[str, Any] = {"precision": method.precision, "streams": streams, "rows": rows}
    if method.compiled:
        options["compiled"] = True
    return options


def main_file(row: Row) -> Path:
    """The file that the engine loads.

    Raises:
        ConfigError: the row has no form that can be served.
    """
    if row.folder is None or not row.file:
        raise ConfigError(f"{row.name} has no form that can be served", hint="choose another method")
    return row.folder / row.file


def copy_model(row: Row, folder: Path) -> Path:
    """Copy the model's files into a folder of the user's, links resolved; returns the main one."""
    source = main_file(row)
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.parent.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    return folder / source.name

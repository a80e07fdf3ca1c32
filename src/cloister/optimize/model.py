"""An optimized model to call from Python, as one calls the original."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.engines.engine import Engine, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.table import open_engine
from cloister.errors import ConfigError, MalformedInput
from cloister.optimize.deploy import copy_model
from cloister.optimize.result import Row
from cloister.optimize.samples import as_array

DESCRIPTION = "cloister-model.json"


class OptimizedModel:
    """A model in its engine. Takes what the original takes; gives tensors where it was given tensors.

    One output is answered as it is, several as a mapping by name.
    """

    def __init__(self, engine: Engine, description: Mapping[str, Any], row: Row | None, held: object) -> None:
        self._engine, self._row, self._held = engine, row, held
        self.description = dict(description)

    @classmethod
    def of_row(cls, row: Row, *, threads: int = 0, held: object = None) -> OptimizedModel:
        """The model that a search or a conversion made.

        Args:
            held: kept as long as the model: the folder that its files are in.
        Raises:
            ConfigError: the row has no form that can be run again.
        """
        if row.folder is None or row.method is None:
            raise ConfigError(f"{row.name} has no form of its own", hint="it is the original")
        described = {
            "method": row.name,
            "kind": row.method.kind,
            "file": row.file,
            "threads": threads,
            "precision": row.method.precision,
            "compiled": row.method.compiled,
            # It is called for one request after the other: each is to have all threads.
            "streams": 1,
            "rows": 1,
        }
        return cls(_open(row.folder, described), described, row, held)

    @classmethod
    def load(cls, folder: Path) -> OptimizedModel:
        """What ``save`` wrote.

        Raises:
            ConfigError: there is no such model in the folder.
        """
        try:
            described = json.loads((folder / DESCRIPTION).read_bytes())
            described["kind"], described["file"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder} holds no optimized model") from error
        return cls(_open(folder, described), described, None, folder)

    def save(self, folder: Path) -> None:
        """Write the model and how it is run into a folder.

        Raises:
            ConfigError: it was loaded from files, which are there already.
        """
        if self._row is None:
            raise ConfigError("this model was loaded from a folder: copy that")
        copy_model(self._row, folder)
        (folder / DESCRIPTION).write_text(json.dumps(self.description, indent=2) + "\n")

    @property
    def schema(self) -> Any:
        """What it takes and gives."""
        return self._engine.schema

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Predict.

        Raises:
            MalformedInput: not the model's inputs; shows those.
        """
        given = self._bind(inputs, named)
        tensors = any(hasattr(value, "detach") for value in given.values())
        arrays = {name: as_array(value) for name, value in given.items()}
        self._engine.schema.check(arrays)
        found: dict[str, Any] = dict(self._engine.infer(arrays))
        if tensors:
            import torch

            found = {name: torch.from_numpy(array.copy()) for name, array in found.items()}
        return next(iter(found.values())) if len(found) == 1 else found

    def eval(self) -> OptimizedModel:
        """Itself: it cannot be trained."""
        return self

    def close(self) -> None:
        """Let go of the model."""
        self._engine.close()

    def _bind(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        names = [spec.name for spec in self._engine.schema.inputs]
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return {**inputs[0], **named}
        if len(inputs) > len(names):
            raise MalformedInput(f"{len(inputs)} inputs; expected {self._engine.schema.render()}")
        return {**dict(zip(names, inputs, strict=False)), **named}


def _open(folder: Path, described: Mapping[str, Any]) -> Engine:
    options = EngineOptions(
        threads=int(described.get("threads", 0)),
        streams=int(described.get("streams", 0)),
        rows=int(described.get("rows", 0)),
        precision=str(described.get("precision", "")),
        compiled=bool(described.get("compiled", False)),
    )
    return open_engine(described["kind"], ModelFiles.from_folder(folder), described["file"], options)

"""A model without a handler: requests in, outcomes out, with one engine between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cloister.engines.engine import FEW_ROWS, Array, Engine, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.spec import EngineSpec, ServedSpec
from cloister.engines.table import open_engine
from cloister.errors import MalformedInput
from cloister.serve.direct.inputs import Given, InputReader, zero_inputs
from cloister.serve.direct.outputs import OutputWriter
from cloister.serve.frames import Fault
from cloister.serve.handler import Outcome, describe_failure
from cloister.serve.incoming import Incoming


class Ready(NamedTuple):
    """A request whose inputs are the model's."""

    request: Incoming
    given: Given


class DirectModel:
    """Answers requests with an engine. Its methods may be called from several threads."""

    def __init__(self, engine: Engine, spec: ServedSpec, files: ModelFiles, *, show_text: bool) -> None:
        self.engine = engine
        self.reads_pictures = spec.input.image is not None
        self._reader = InputReader(engine.schema, spec.input)
        self._writer = OutputWriter(engine.schema, spec.output, files)
        self._show_text = show_text

    def warm_up(self) -> None:
        """Run once in each stream: an engine's first inference is slow, and is not to be a caller's.

        A model that cannot compute with zeros, such as one that inverts a matrix, is served all the same.
        """
        inputs = zero_inputs(self.engine.schema)
        if inputs is None:
            return
        try:
            self.engine.infer_each([inputs] * self.engine.streams)
        except Exception as error:  # (a model may raise anything)
            if isinstance(error, MemoryError):
                raise

    def read(self, request: Incoming) -> Ready | Outcome:
        """The request's inputs, or the refusal of what is not the model's."""
        try:
            return Ready(request, self._reader.read(request))
        except MalformedInput as error:
            return Outcome(400, fault=Fault(error.message))

    def compute(self, batch: Sequence[Ready]) -> tuple[list[Outcome], float]:
        """One outcome for each of them, and the time that the engine took. They go through it together."""
        started = time.perf_counter()
        try:
            parts = _split(batch, self.engine.infer(_joined(batch)))
            took_s = time.perf_counter() - started
        except Exception as error:  # (a model may raise anything)
            if isinstance(error, MemoryError):
                raise
            if len(batch) > 1:
                alone = [self.compute([item]) for item in batch]
                return [outcomes[0] for outcomes, _ in alone], sum(took_s for _, took_s in alone)
            return [self._failed(error)], time.perf_counter() - started
        return [self._render(item, part) for item, part in zip(batch, parts, strict=True)], took_s

    def _render(self, item: Ready, outputs: dict[str, Array]) -> Outcome:
        try:
            body, headers = self._writer.write(item.request, item.given, outputs)
            return Outcome(200, body, headers)
        except MalformedInput as error:
            return Outcome(400, fault=Fault(error.message))
        except Exception as error:  # (a model may give anything)
            if isinstance(error, MemoryError):
                raise
            fault = describe_failure("Unsupported model output data type.", error, show_text=self._show_text)
            return Outcome(503, fault=fault)

    def _failed(self, error: Exception) -> Outcome:
        if isinstance(error, MalformedInput):
            return Outcome(400, fault=Fault(error.message))
        return Outcome(503, fault=describe_failure("Prediction failed", error, show_text=self._show_text))


def group(ready: Sequence[Ready], rows: int) -> list[list[Ready]]:
    """Requests that can go through an engine together: of the same sizes, at most ``rows`` rows in all."""
    groups: dict[tuple[object, ...], list[Ready]] = {}
    done: list[list[Ready]] = []
    filled: dict[tuple[object, ...], int] = {}
    for item in ready:
        key = tuple((name, array.shape[1:]) for name, array in item.given.arrays.items())
        if key in groups and filled[key] + item.given.rows > rows:
            done.append(groups.pop(key))
        groups.setdefault(key, []).append(item)
        filled[key] = (filled[key] if len(groups[key]) > 1 else 0) + item.given.rows
    return [*done, *groups.values()]


def load_direct(folder: Path, spec: ServedSpec, *, threads: int, show_text: bool) -> DirectModel:
    """Load the engine of an unpacked archive and run it once.

    Args:
        threads: what this worker was given; 0 means all of its cores.
    Raises:
        ConfigError: the engine or one of its options is unknown, or it does not take the model.
        MissingDependencyError: a package is not installed.
    """
    files = ModelFiles.from_folder(folder)
    engine = open_engine(spec.engine.kind, files, spec.engine.file, options_of(spec, threads=threads))
    model = DirectModel(engine, spec, files, show_text=show_text)
    model.warm_up()
    return model


def options_of(spec: ServedSpec, *, threads: int = 0) -> EngineOptions:
    """The engine's options; where the model does not say, few pictures go together, slow to decode."""
    engine: EngineSpec = spec.engine
    return EngineOptions(
        threads=engine.threads or threads,
        streams=engine.streams,
        precision=engine.precision,
        rows=engine.rows or (FEW_ROWS if spec.input.image is not None else 0),
        compiled=engine.compiled,
        entry=engine.entry,
        schema=engine.form,
    )


def _joined(batch: Sequence[Ready]) -> dict[str, Array]:
    if len(batch) == 1:
        return batch[0].given.arrays
    names = batch[0].given.arrays
    return {name: np.concatenate([item.given.arrays[name] for item in batch]) for name in names}


def _split(batch: Sequence[Ready], outputs: dict[str, Array]) -> list[dict[str, Array]]:
    """The rows of each request.

    Raises:
        ValueError: the model gave another number of rows than it got.
    """
    if len(batch) == 1:
        return [outputs]
    total = sum(item.given.rows for item in batch)
    if any(len(array) != total for array in outputs.values()):
        raise ValueError("the model gave another number of rows than it got")
    found, start = [], 0
    for item in batch:
        end = start + item.given.rows
        found.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return found

"""What is measured: a model in an engine, or the user's model as its own library runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cloister.engines.trees import rounds_of
from cloister.errors import ConfigError
from cloister.optimize.job import Family
from cloister.optimize.program import Program
from cloister.optimize.samples import as_array
from cloister.optimize.source import input_names

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class Runner(Protocol):
    """The part of ``engines.Engine`` that is measured."""

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs for one request."""

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        """The outputs for several requests."""

    def close(self) -> None:
        """Let go of the model."""


class ObjectRunner:
    """A model as its own library runs it, one request after the other."""

    def __init__(self, call: Callable[[Arrays], dict[str, Array]], names: Sequence[str]) -> None:
        self._call = call
        self.names = tuple(names)

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        return self._call(inputs)

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        return [self._call(inputs) for inputs in batches]

    def close(self) -> None:
        self._call = _closed


def original_runner(model: Any, family: Family, given: list[str], threads: int) -> ObjectRunner:
    """The user's object, ready to run.

    Args:
        given: the names of the data's inputs.
    Raises:
        ConfigError: objects of this family are not run by themselves.
    """
    if family == "torch":
        return _torch_runner(model, given, threads)
    if family == "trees":
        return ObjectRunner(_tree_call(model), given)
    raise ConfigError(f"a {family} model is measured in an engine only")


def flatten(outputs: Any) -> dict[str, Array]:
    """Outputs of any usual structure by name: a tensor, a tuple, a mapping, a ``ModelOutput``."""
    if isinstance(outputs, Mapping):
        found: dict[str, Array] = {}
        for name, value in outputs.items():
            if hasattr(value, "shape"):
                found[str(name)] = as_array(value)
        return found
    if isinstance(outputs, tuple | list):
        tensors = [value for value in outputs if hasattr(value, "shape")]
        return {f"output_{place}": as_array(value) for place, value in enumerate(tensors)}
    return {"output": as_array(outputs)}


def _torch_runner(model: Any, given: list[str], threads: int) -> ObjectRunner:
    import torch

    if threads:
        torch.set_num_threads(threads)
    names = input_names(model, given)
    # TorchScript may have lost the names.
    by_order = len(names) == 1 or isinstance(model, torch.jit.ScriptModule)

    def call(inputs: Arrays) -> dict[str, Array]:
        tensors = {name: torch.from_numpy(np.asarray(inputs[name])) for name in names}
        with torch.inference_mode():
            if isinstance(model, Program):
                return flatten(model(tensors))
            return flatten(model(*tensors.values()) if by_order else model(**tensors))

    return ObjectRunner(call, names)


def _tree_call(model: Any) -> Callable[[Arrays], dict[str, Array]]:
    library = type(model).__module__.partition(".")[0]
    native = library == "xgboost" and type(model).__name__ == "Booster"

    rounds = (0, rounds_of(model)) if native else (0, 0)

    def call(inputs: Arrays) -> dict[str, Array]:
        features = next(iter(inputs.values()))
        if native:
            return {"output": np.asarray(model.inplace_predict(features, iteration_range=rounds))}
        predict = getattr(model, "predict_proba", None) or model.predict
        return {"output": np.asarray(predict(features))}

    return call


def _closed(_: Arrays) -> dict[str, Array]:
    raise ConfigError("this model was closed")

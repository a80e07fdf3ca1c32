"""What every engine offers, and how it may be told to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from cloister.engines.files import ModelFiles
from cloister.engines.schema import ModelSchema

Array = NDArray[Any]
Arrays = Mapping[str, Array]

FEW_ROWS = 4
"""So many rows of a large model are worth one inference: its weights are read once for them, and what lies
between its layers still fits into a core's cache. With ResNet-50 and BERT-Large at INT8, 7 and 4 % more
answers than one by one, and no fewer than with 8 or 16 together."""
PRECISIONS = ("", "fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs a model. The defaults are right for a worker."""

    threads: int = 0
    """In all streams together; 0 means the cores that this process may run on."""
    streams: int = 0
    """Inferences at a time; 0 leaves the choice to the engine."""
    precision: str = ""
    """What to compute in: ``fp32``, ``bf16``, ``fp16``. Empty: as the model is stored. ``int8`` is a property
    of the stored model, and means the same as empty."""
    rows: int = 0
    """Up to how many rows of several requests are put together for one inference; 0 leaves the choice to the
    engine, 1 puts none together."""
    compiled: bool = False
    """PyTorch only: ``torch.compile`` when it is loaded. Needs a compiler, which no sandbox lets start."""
    entry: str = ""
    """PyTorch with weights alone: ``file.py:Name`` of the archive, a class or function that
    makes the module."""
    schema: ModelSchema | None = None
    """For files that do not say it themselves: TorchScript, weights alone."""


class Engine(Protocol):
    """A model that is loaded. Its methods may be called from several threads."""

    schema: ModelSchema
    streams: int
    """How many inferences it runs at a time; more callers than this wait for each other."""
    rows: int
    """Up to how many rows are worth one inference."""

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs for inputs that ``schema.check`` has let pass.

        The arrays may be read-only, and are the caller's own.

        Raises:
            MalformedInput: the model does not take these inputs after all.
        """

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        """The outputs for each of several inputs, in order, as parallel as ``streams`` allows."""

    def close(self) -> None:
        """Let go of the model. May be called twice."""


OpenModel = Callable[[ModelFiles, str, EngineOptions], Engine]
"""Load a model from one of its archive's files. Others that belong to it are found from there."""

"""An engine that doubles numbers: what reads requests and writes answers is tried around it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from cloister.engines.engine import Array, Arrays
from cloister.engines.schema import ModelSchema, TensorSpec
from cloister.errors import MalformedInput

SCHEMA = ModelSchema((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))


class Doubler:
    """``y = 2 x``. Refuses a negative first number, and breaks on 13."""

    def __init__(self, *, rows: int = 8, streams: int = 1, wait: threading.Barrier | None = None) -> None:
        self.schema = SCHEMA
        self.rows = rows
        self.streams = streams
        self.sizes: list[int] = []
        """Rows of each call."""
        self._wait = wait

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        x = inputs["x"]
        self.sizes.append(len(x))
        if (x[:, 0] < 0).any():
            raise MalformedInput("a first number is negative")
        if (x == 13).any():
            raise RuntimeError("secret")
        if self._wait is not None:
            self._wait.wait(10)
        return {"y": np.asarray(x * 2)}

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        return [self.infer(inputs) for inputs in batches]

    def close(self) -> None:
        """Nothing to let go of."""

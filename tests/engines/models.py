"""One small model for each engine, with inputs and what its own library answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Made:
    """A model file and what is known of it."""

    kind: str
    file: Path
    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    """The library's own answer, called directly."""
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra_files: tuple[Path, ...] = ()
    rtol: float = 1e-5


def rows(count: int = 4, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


def installed(*names: str) -> bool:
    """Whether all of these packages can be imported."""
    import importlib.util

    return all(importlib.util.find_spec(name) is not None for name in names)


def small_ir(rows: int = -1) -> Any:
    """OpenVINO's form of two layers with fixed weights: eight numbers to three."""
    import openvino

    ops = openvino.opset13
    numbers = np.random.default_rng(7)
    x = ops.parameter([rows, 8], np.float32, name="x")
    hidden = ops.relu(ops.matmul(x, ops.constant(numbers.standard_normal((8, 16), np.float32)), False, False))
    y = ops.matmul(hidden, ops.constant(numbers.standard_normal((16, 3), np.float32)), False, False)
    x.output(0).set_names({"x"})
    y.output(0).set_names({"y"})
    return openvino.Model([y], [x], "small")


def make_openvino(folder: Path) -> Made | None:
    if not installed("openvino"):
        return None
    import openvino

    model = small_ir()
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    direct = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return Made("openvino", folder / "model.xml", {"x": rows()}, {"y": np.array(direct(rows())[0])})


MODELS: dict[str, Callable[[Path], Made | None]] = {
    "openvino": make_openvino,
}
"""Makes the model in a folder; None where its packages are not installed."""

"""One small model for each engine, with inputs and what its own library answers to them."""

from __future__ import annotations

import json
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


def make_onnx(folder: Path) -> Made | None:
    if not installed("onnxruntime", "onnx"):
        return None
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    numbers = np.random.default_rng(7)
    weights = [numbers.standard_normal(size, np.float32) for size in ((8, 16), (16, 3))]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "b"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(array, name) for name, array in zip("ab", weights, strict=True)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": rows()})
    return Made("onnxruntime", folder / "model.onnx", {"x": rows()}, {"y": expected})


def small_net() -> Any:
    """The same two layers as a module of PyTorch."""
    import torch

    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()


def export_net(net: Any) -> Any:
    """An exported program with any number of rows."""
    import torch

    batch = {0: torch.export.Dim("rows")}
    return torch.export.export(net, (torch.zeros(2, 8),), dynamic_shapes=(batch,))


def answer_of(net: Any) -> np.ndarray:
    import torch

    with torch.inference_mode():
        found: np.ndarray = net(torch.from_numpy(rows())).numpy()
    return found


def make_torch(folder: Path) -> Made | None:
    if not installed("torch"):
        return None
    import torch

    net = small_net()
    torch.export.save(export_net(net), folder / "model.pt2")
    return Made("torch", folder / "model.pt2", {"input": rows()}, {"output_0": answer_of(net)})


def make_compiled(folder: Path) -> Made | None:
    import shutil

    made = make_torch(folder)
    if made is None or shutil.which("g++") is None:
        return None
    return Made("torch", made.file, made.inputs, made.expected, {"compiled": True})


NET_SCHEMA = {
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 8]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}],
}


def make_torchscript(folder: Path) -> Made | None:
    if not installed("torch"):
        return None
    import torch

    net = small_net()
    torch.jit.trace(net, torch.zeros(2, 8)).save(folder / "model.pt")
    options = {"schema": NET_SCHEMA}
    return Made("torch", folder / "model.pt", {"input": rows()}, {"scores": answer_of(net)}, options)


def make_weights(folder: Path) -> Made | None:
    if not installed("torch", "safetensors"):
        return None
    from safetensors.torch import save_file

    net = small_net()
    save_file(net.state_dict(), folder / "model.safetensors")
    code = folder / "net.py"
    code.write_text(
        "import torch\n\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))\n"
    )
    return Made(
        "torch",
        folder / "model.safetensors",
        {"input": rows()},
        {"scores": answer_of(net)},
        {"entry": "net.py:Net", "schema": NET_SCHEMA},
        extra_files=(code,),
    )


def tabular() -> tuple[np.ndarray, np.ndarray]:
    """Features and classes that depend on them."""
    x = np.random.default_rng(3).standard_normal((400, 8), np.float32)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(int) + (x[:, 3] > 1)


def make_xgboost(folder: Path) -> Made | None:
    if not installed("xgboost"):
        return None
    import xgboost

    x, y = tabular()
    settings = {"objective": "multi:softprob", "num_class": 3, "nthread": 1, "max_depth": 3}
    booster = xgboost.train(settings, xgboost.DMatrix(x, y), 8)
    booster.save_model(folder / "model.json")
    expected = booster.predict(xgboost.DMatrix(rows()))
    return Made("trees", folder / "model.json", {"x": rows()}, {"scores": expected})


def make_lightgbm(folder: Path) -> Made | None:
    if not installed("lightgbm"):
        return None
    import lightgbm

    x, y = tabular()
    settings = {"objective": "multiclass", "num_class": 3, "num_threads": 1, "verbose": -1}
    booster = lightgbm.train(settings, lightgbm.Dataset(x, y), 8)
    booster.save_model(folder / "model.txt")
    inputs = rows().astype(np.float64)
    return Made("trees", folder / "model.txt", {"x": inputs}, {"scores": np.asarray(booster.predict(inputs))})


def make_sklearn(folder: Path) -> Made | None:
    if not installed("sklearn", "skops", "treelite"):
        return None
    import skops.io
    from sklearn.ensemble import RandomForestClassifier

    x, y = tabular()
    forest = RandomForestClassifier(10, max_depth=4, random_state=0).fit(x, y)
    skops.io.dump(forest, folder / "model.skops")
    inputs = rows().astype(np.float64)
    return Made("trees", folder / "model.skops", {"x": inputs}, {"scores": forest.predict_proba(inputs)})


DATA = Path(__file__).parent / "data"


def make_saved_model(folder: Path) -> Made | None:
    """Keras's ``Dense(16, "relu")`` and ``Dense(3, "softmax")``, exported, and its own answer."""
    if not installed("openvino"):
        return None
    inputs = {"keras_tensor": rows()}
    expected = np.array(json.loads((DATA / "saved_model.json").read_text()), np.float32)
    return Made("tensorflow", DATA / "saved_model", inputs, {"output_0": expected})


def make_keras(folder: Path) -> Made | None:
    if not installed("openvino", "keras", "tensorflow"):
        return None
    import keras

    keras.utils.set_random_seed(7)
    layers = [keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((8,), name="x"), *layers])
    model.save(folder / "model.keras")
    expected = model.predict(rows(), verbose=0)
    return Made("tensorflow", folder / "model.keras", {"x": rows()}, {"output_0": expected})


MODELS: dict[str, Callable[[Path], Made | None]] = {
    "openvino": make_openvino,
    "onnxruntime": make_onnx,
    "torch": make_torch,
    "torchscript": make_torchscript,
    "torch-weights": make_weights,
    "xgboost": make_xgboost,
    "lightgbm": make_lightgbm,
    "sklearn": make_sklearn,
    "tensorflow": make_saved_model,
    "keras": make_keras,
}
"""Makes the model in a folder; None where its packages are not installed."""
SLOW_MODELS = {"torch-compiled": make_compiled}
"""Those that take a minute to make."""

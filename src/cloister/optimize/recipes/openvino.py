"""OpenVINO's IR: from any other form, and quantized to INT8 by NNCF with calibration data.

Source: NNCF 3, "Post-training quantization" and "Quantization with accuracy control".
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cloister.engines.convert import convert_model
from cloister.errors import ConfigError, MissingDependencyError
from cloister.optimize.data import load_metric
from cloister.optimize.job import Job
from cloister.optimize.program import Program
from cloister.optimize.samples import Samples
from cloister.optimize.source import family_of_object, input_names, load

FILE = "model.xml"
_SEQUENCES = ("i32", "i64")
"""Inputs of these types are tokens: their lengths differ from request to request."""


def make_ir(job: Job, folder: Path) -> str:
    """The model as FP32 IR, with any number of rows."""
    openvino = _import("openvino")
    if job.source.form == "ir":
        _link(Path(job.source.place), folder / FILE)
        _link(Path(job.source.place).with_suffix(".bin"), (folder / FILE).with_suffix(".bin"))
        return FILE
    samples = Samples.load(Path(job.data))
    if job.source.form in {"savedmodel", "keras"}:
        model = _from_tensorflow(openvino, Path(job.source.place), folder)
    elif job.source.form == "onnx":
        model = openvino.convert_model(job.source.place)
    else:
        model, samples = _from_object(openvino, job, samples)
    _free_rows(openvino, model, samples)
    _name_outputs(model)
    openvino.save_model(model, folder / FILE, compress_to_fp16=False)
    return FILE


def make_int8(job: Job, folder: Path) -> str:
    """The IR of ``job.base``, weights and activations in INT8."""
    nncf, openvino = _import("nncf"), _import("openvino")
    model, calibration = _opened(openvino, job)
    quantized = nncf.quantize(model, nncf.Dataset(calibration), **_how(nncf, model, len(calibration)))
    openvino.save_model(quantized, folder / FILE, compress_to_fp16=False)
    return FILE


def make_int8_accuracy(job: Job, folder: Path) -> str:
    """As ``make_int8``, with operations put back to FP32 until the metric is within the drop."""
    nncf, openvino = _import("nncf"), _import("openvino")
    model, calibration = _opened(openvino, job)
    metric = load_metric(job.metric)
    validation = Samples.load(Path(job.validation)).named([_port_name(port) for port in model.inputs])
    if not validation.targets:
        raise ConfigError("quantization with accuracy control needs validation data with targets")
    sign = 1.0 if metric.higher_is_better else -1.0

    def validate(compiled: Any, pieces: Any) -> tuple[float, None]:
        found, wanted = [], []
        for piece, target in pieces:
            found.append(compiled(piece)[0])
            wanted.append(target)
        return sign * metric.score(np.concatenate(found), np.concatenate(wanted)), None

    quantized = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(calibration),
        nncf.Dataset(list(zip(validation.pieces, validation.targets, strict=True))),
        validation_fn=validate,
        max_drop=job.max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        **_how(nncf, model, len(calibration)),
    )
    openvino.save_model(quantized, folder / FILE, compress_to_fp16=False)
    return FILE


def is_transformer(model: Any) -> bool:
    """Whether an OpenVINO model has attention, which NNCF quantizes in another way."""
    kinds = [operation.get_type_name() for operation in model.get_ops()]
    return "ScaledDotProductAttention" in kinds or (kinds.count("Softmax") > 1 and "MatMul" in kinds)


def _how(nncf: Any, model: Any, rows: int) -> dict[str, Any]:
    found: dict[str, Any] = {"preset": nncf.QuantizationPreset.MIXED, "subset_size": rows}
    if is_transformer(model):
        found["model_type"] = nncf.ModelType.TRANSFORMER
    return found


def _opened(openvino: Any, job: Job) -> tuple[Any, list[dict[str, Any]]]:
    core = openvino.Core()
    if job.threads:
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": job.threads})
    model = core.read_model(Path(job.base) / FILE)
    samples = Samples.load(Path(job.data)).named([_port_name(port) for port in model.inputs])
    return model, samples.rows(job.calibration_rows)


def _from_tensorflow(openvino: Any, place: Path, folder: Path) -> Any:
    """As it would be packed; what is made on the way there is removed, and stays mapped as long as needed."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        return openvino.Core().read_model(convert_model("tensorflow", place, Path(made)).file)


def _from_object(openvino: Any, job: Job, samples: Samples) -> tuple[Any, Samples]:
    import torch

    model = load(job.source)
    if family_of_object(model) == "tensorflow":
        return openvino.convert_model(model), samples
    names = input_names(model, samples.names)
    samples = samples.named(names)
    if isinstance(model, Program):
        converted = openvino.convert_model(model.exported)
        for port, name in zip(converted.inputs, names, strict=True):
            port.get_tensor().set_names({name})
        return converted, samples
    # Two rows: a batch of one may be taken for a constant.
    example = {name: torch.from_numpy(np.repeat(a[:1], 2, axis=0)) for name, a in samples.pieces[0].items()}
    plain = job.source.form == "torchscript" or len(example) == 1
    given: Any = example
    if plain:
        given = tuple(example.values())
    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=given)
    if len(converted.inputs) == len(names):
        for port, name in zip(converted.inputs, names, strict=True):
            if name not in port.get_names() and plain:
                port.get_tensor().set_names({name})
    return converted, samples


def _free_rows(openvino: Any, model: Any, samples: Samples) -> None:
    """Any number of rows; sizes that no piece of the data varies are fixed, but not those of tokens."""
    try:
        named = samples.named([_port_name(port) for port in model.inputs])
        shapes = {_port_name(port): _shape(openvino, port, named) for port in model.inputs}
        original = {name: model.input(name).partial_shape for name in shapes}
        try:
            model.reshape(shapes)
        except RuntimeError:
            model.reshape(original)
    except (RuntimeError, ConfigError):
        return  # it keeps the shapes that it has; whether they do is seen when it runs


def _shape(openvino: Any, port: Any, samples: Samples) -> Any:
    name = _port_name(port)
    arrays = [piece[name] for piece in samples.pieces]
    tokens = port.get_element_type().get_type_name() in _SEQUENCES
    sizes: list[int] = [-1]
    for axis in range(1, arrays[0].ndim):
        found = {array.shape[axis] for array in arrays}
        sizes.append(found.pop() if len(found) == 1 and not tokens else -1)
    return openvino.PartialShape(sizes)


def _port_name(port: Any) -> str:
    """The first name in alphabetical order, as the engine has it."""
    return str(min(port.get_names(), default="")) or f"input_{port.get_index()}"


def _name_outputs(model: Any) -> None:
    """One name for each output: the one that the model's author gave, not a number."""
    for place, port in enumerate(model.outputs):
        words = sorted(name for name in port.get_names() if not name.isdecimal())
        name = words[0] if words else ("output" if len(model.outputs) == 1 else f"output_{place}")
        port.get_tensor().set_names({name})


def _link(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ConfigError(f"there is no {source.name} beside the model")
    target.symlink_to(source.resolve())


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is not installed", hint="pip install 'cloister[openvino]'"
        ) from error

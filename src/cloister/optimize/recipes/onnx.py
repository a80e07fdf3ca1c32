"""ONNX: exported from PyTorch or scikit-learn, and quantized to INT8 by ONNX Runtime (QDQ).

Source: onnxruntime.ai, "Quantize ONNX models": on AVX-512 VNNI, activations unsigned and weights signed.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloister.errors import ConfigError, MissingDependencyError
from cloister.optimize.job import Job
from cloister.optimize.program import Program
from cloister.optimize.recipes.plain import plain_module
from cloister.optimize.samples import Samples
from cloister.optimize.source import input_names, load

FILE = "model.onnx"
MAX_CALIBRATION_ROWS = 32
"""ONNX Runtime's calibration keeps the activations of all rows in memory."""


def make_onnx(job: Job, folder: Path) -> str:
    """The model as FP32 ONNX, with any number of rows."""
    if job.source.form == "onnx":
        (folder / FILE).symlink_to(job.source.place)
        weights = Path(f"{job.source.place}.data")
        if weights.is_file():  # under the name that the model has for it; a link to it would be refused
            shutil.copyfile(weights, folder / weights.name)
        return FILE
    samples = Samples.load(Path(job.data))
    if job.family == "trees":
        return _from_sklearn(job, samples, folder)
    import torch

    model = load(job.source)
    samples = samples.named(input_names(model, samples.names))
    example = {name: torch.from_numpy(array[:2]) for name, array in samples.pieces[0].items()}
    axes = {name: _axes(samples, name) for name in example}
    if isinstance(model, Program):
        # Only the exporter that needs onnxscript takes these; where that is missing, so is a dependency.
        torch.onnx.export(model.exported, f=folder / FILE, input_names=list(example), external_data=False)
        return FILE
    if job.source.form != "torchscript":
        model = plain_module(model, list(example))
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter that would replace it needs onnxscript; PyTorch is pinned, so it stays as it is.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            args=tuple(example.values()),
            f=folder / FILE,
            input_names=list(example),
            dynamic_axes=axes,
            dynamo=False,
        )
    return FILE


def make_int8(job: Job, folder: Path) -> str:
    """The ONNX of ``job.base``, quantized with the calibration data's ranges."""
    try:
        import onnx
        from onnxruntime import InferenceSession, SessionOptions, quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime or onnx is not installed", hint="pip install 'cloister[onnx]'"
        ) from error
    base, ready = Path(job.base) / FILE, folder / "ready.onnx"
    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(str(base), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    del session
    rows = Samples.load(Path(job.data)).named(names).rows(min(job.calibration_rows, MAX_CALIBRATION_ROWS))
    # As an object: of a path it would lose the weights that lie beside it.
    quant_pre_process(onnx.load(base), str(ready), skip_symbolic_shape=True)
    reader = _reader(quantization.CalibrationDataReader, rows)
    quantization.quantize_static(
        str(ready),
        str(folder / FILE),
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    ready.unlink()
    return FILE


def _reader(base: Any, rows: list[dict[str, Any]]) -> Any:
    class Reader(base):  # type: ignore[misc]  # the library is loaded here only
        def __init__(self) -> None:
            self._rows: Iterator[dict[str, Any]] = iter(rows)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._rows, None)

    return Reader()


def _axes(samples: Samples, name: str) -> dict[int, str]:
    """The sizes that may change: rows, and those of tokens or of data that varies."""
    arrays = [piece[name] for piece in samples.pieces]
    tokens = arrays[0].dtype.kind in "iu"
    varying = [
        axis
        for axis in range(1, arrays[0].ndim)
        if tokens or len({array.shape[axis] for array in arrays}) > 1
    ]
    return {0: "rows"} | {axis: f"size_{axis}" for axis in varying}


def _from_sklearn(job: Job, samples: Samples, folder: Path) -> str:
    model = load(job.source)
    if type(model).__module__.partition(".")[0] != "sklearn":
        raise ConfigError(f"a {type(model).__name__} is not converted to ONNX; its own engine runs it")
    try:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise MissingDependencyError("skl2onnx is not installed", hint="pip install skl2onnx") from error
    features = next(iter(samples.pieces[0].values()))
    if features.ndim != 2:
        raise ConfigError(f"a table has two dimensions, found {features.ndim}")
    kinds = [(samples.names[0], FloatTensorType([None, features.shape[1]]))]
    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    converted = convert_sklearn(model, initial_types=kinds, options=options)
    outputs = list(converted.graph.output)
    if len(outputs) == 2:  # label and probabilities: the scores first, as all other engines answer
        del converted.graph.output[:]
        converted.graph.output.extend([outputs[1]])
    (folder / FILE).write_bytes(converted.SerializeToString())
    return FILE

"""ONNX Runtime: ``.onnx`` files, with weights inside or in files beside them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from cloister.engines.engine import Array, Arrays, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.schema import ANY, Datatype, ModelSchema, TensorSpec
from cloister.engines.threads import available_cores, infer_in_threads
from cloister.errors import ConfigError, MissingDependencyError

SMALL_BYTES = 4 << 20
SMALL_ROWS = 64
EXTERNAL = (".data", ".bin", ".weights")
"""How files with weights beside the model's own end."""
_PRECISIONS = ("", "fp32", "int8")
_DATATYPES: dict[str, Datatype] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}


def open_model(files: ModelFiles, file: str, options: EngineOptions) -> OnnxEngine:
    """Load a model.

    Raises:
        ConfigError: ONNX Runtime does not take the file or the precision.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "the engine onnxruntime needs ONNX Runtime", hint="pip install 'cloister[onnx]'"
        ) from error
    if options.precision not in _PRECISIONS:
        raise ConfigError(f"onnxruntime computes as the model is stored, not in {options.precision!r}")
    content = files.read(file)
    streams = options.streams or 1
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = max(1, (options.threads or available_cores()) // streams)
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    # Threads that spin while they wait would take the cores from those that decode and answer.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    beside = [name for name in files.names() if name.endswith(EXTERNAL)]
    size = len(content) + sum(len(files.read(name)) for name in beside)
    try:
        if beside:
            buffers = [bytes(files.read(name)) for name in beside]
            settings.add_external_initializers_from_files_in_memory(
                beside, buffers, [len(buffer) for buffer in buffers]
            )
        session = onnxruntime.InferenceSession(bytes(content), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class of their own
        raise ConfigError(f"ONNX Runtime does not read {file[:256]!r}") from error
    rows = options.rows or (SMALL_ROWS if size < SMALL_BYTES else 1)
    return OnnxEngine(session, streams=streams, rows=rows)


class OnnxEngine:
    """A session; it may run several inferences at a time."""

    def __init__(self, session: Any, *, streams: int, rows: int) -> None:
        self._session = session
        self.schema = ModelSchema(
            tuple(_spec(item) for item in session.get_inputs()),
            tuple(_spec(item) for item in session.get_outputs()),
        )
        self.streams = streams
        self.rows = rows if self.schema.joins else 1
        self._outputs = [spec.name for spec in self.schema.outputs]
        self._turns = threading.BoundedSemaphore(streams)

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        with self._turns:
            try:
                found = self._session.run(self._outputs, dict(inputs))
            except Exception as error:
                if type(error).__name__ in ("InvalidArgument", "RuntimeException", "Fail"):
                    raise self.schema.refusal("ONNX Runtime could not compute with these inputs") from error
                raise
        return dict(zip(self._outputs, found, strict=True))

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        return infer_in_threads(self.infer, batches, self.streams)

    def close(self) -> None:
        self._session = None


def _spec(item: Any) -> TensorSpec:
    datatype = _DATATYPES.get(item.type)
    if datatype is None:
        raise ConfigError(f"ONNX's type {item.type} of {item.name!r} has no tensor datatype")
    sizes = tuple(size if isinstance(size, int) and size >= 0 else ANY for size in item.shape)
    return TensorSpec(item.name, datatype, sizes)

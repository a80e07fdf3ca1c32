"""OpenVINO: its IR (``.xml`` with ``.bin``), and the ONNX and TFLite models that it reads itself.

The IR's constants stay where they are: in the map of the decrypted file, one copy for all workers. What the
CPU plugin rearranges for its kernels is each worker's own.
"""

from __future__ import annotations

import ctypes
import io
import queue
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np

from cloister.engines.engine import FEW_ROWS, Array, Arrays, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.schema import ANY, Datatype, ModelSchema, TensorSpec
from cloister.engines.threads import available_cores, infer_in_threads
from cloister.errors import ConfigError, MalformedInput, MissingDependencyError

SMALL_BYTES = 4 << 20
"""A model with fewer bytes of weights is done sooner than it is called: rows are put together for it."""
SMALL_ROWS = 64
_HINTS = {"": "f32", "int8": "f32", "fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_WIDE = ("INT64", "UINT64", "UINT32")
_INT32 = np.iinfo(np.int32)
_DATATYPES: dict[str, Datatype] = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}


def open_model(files: ModelFiles, file: str, options: EngineOptions) -> OpenVinoEngine:
    """Read and compile a model.

    Raises:
        ConfigError: OpenVINO does not read the file, or the precision is not one of its own.
        MissingDependencyError: OpenVINO is not installed.
    """
    core = make_core()
    content = files.read(file)
    weights: memoryview | None = None
    try:
        if file.endswith(".xml"):
            weights = files.read(files.beside(file, ".bin"))
            model = core.read_model(bytes(content).decode(), _as_tensor(weights))
        else:
            model = core.read_model(io.BytesIO(content))
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ConfigError(f"OpenVINO does not read {file[:256]!r}") from error
    size = len(content) if weights is None else len(weights)
    return compile_model(core, model, options, size=size, keep=(weights,))


def import_openvino() -> Any:
    """The package, without its telemetry, which would write a file and call home.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    # None makes the import fail, after which OpenVINO and NNCF use stubs of their own.
    sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            "the engine openvino needs OpenVINO", hint="pip install 'cloister[openvino]'"
        ) from error
    return openvino


def make_core() -> Any:
    """OpenVINO's core, without a cache of its own.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    core = import_openvino().Core()
    core.set_property({"CACHE_DIR": ""})
    return core


def compile_model(
    core: Any, model: Any, options: EngineOptions, *, size: int, keep: tuple[object, ...] = ()
) -> OpenVinoEngine:
    """An engine of a model that is in memory.

    Args:
        size: bytes of its weights.
        keep: buffers that the model refers to.
    """
    hint = _HINTS.get(options.precision)
    if hint is None:
        raise ConfigError(f"precision {options.precision!r} is none of {', '.join(filter(None, _HINTS))}")
    _widen_bfloat16(model)
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": options.threads or available_cores(),
        # The worker is on its cores already; several workers would all choose the same ones.
        "ENABLE_CPU_PINNING": False,
    }
    rows = options.rows or (SMALL_ROWS if size < SMALL_BYTES else FEW_ROWS)
    streams = options.streams or (1 if rows > FEW_ROWS else 0)
    config["PERFORMANCE_HINT"] = "LATENCY" if streams == 1 else "THROUGHPUT"
    if streams:
        config["NUM_STREAMS"] = streams
    try:
        compiled = core.compile_model(model, "CPU", config)
    except RuntimeError as error:
        raise ConfigError("OpenVINO cannot compile the model") from error
    return OpenVinoEngine(compiled, rows=rows, keep=keep)


class OpenVinoEngine:
    """A compiled model and one request for each of its streams."""

    def __init__(self, compiled: Any, *, rows: int, keep: tuple[object, ...] = ()) -> None:
        self._compiled = compiled
        self._keep = keep
        inputs = tuple(_spec(port, f"input_{place}") for place, port in enumerate(compiled.inputs))
        outputs = tuple(_spec(port, f"output_{place}") for place, port in enumerate(compiled.outputs))
        self.schema = ModelSchema(_unique(inputs), _unique(outputs))
        self.streams = max(1, int(compiled.get_property("NUM_STREAMS")))
        self.rows = rows if self.schema.joins else 1
        self._names = [spec.name for spec in self.schema.inputs]
        self._given = [spec.name for spec in self.schema.outputs]
        self._wide = [spec.name for spec in self.schema.inputs if spec.datatype in _WIDE]
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.streams):
            self._requests.put(compiled.create_infer_request())

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        for name in self._wide:
            self._check_range(name, inputs[name])
        request = self._requests.get()
        try:
            found = request.infer([inputs[name] for name in self._names], share_inputs=True)
            return {name: found[place] for place, name in enumerate(self._given)}
        except RuntimeError as error:
            raise self._refused(error) from error
        finally:
            self._requests.put(request)

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        # Not AsyncInferQueue: it is no faster, and ends the process ("Resource deadlock avoided") when the
        # last reference to the model happens to be dropped in one of its callbacks.
        return infer_in_threads(self.infer, batches, self.streams)

    def close(self) -> None:
        while not self._requests.empty():
            self._requests.get_nowait()
        self._compiled, self._keep = None, ()

    def _check_range(self, name: str, array: Array) -> None:
        """The CPU plugin computes whole numbers with 32 bits, and would drop the others without a word."""
        if array.size and not (int(array.min()) >= _INT32.min and int(array.max()) <= _INT32.max):
            raise self.schema.refusal(
                f"input {name!r} has numbers over 32 bits, which OpenVINO does not compute with"
            )

    def _refused(self, _: RuntimeError) -> MalformedInput:
        """A model with sizes that depend on each other finds this out only when it runs."""
        return self.schema.refusal("OpenVINO could not compute with these inputs")


def _spec(port: Any, fallback: str) -> TensorSpec:
    names = sorted(port.names)
    datatype = _DATATYPES.get(port.element_type.get_type_name())
    if datatype is None:
        raise ConfigError(f"OpenVINO's type {port.element_type.get_type_name()} has no tensor datatype")
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        raise ConfigError("the model has an input or output without a number of dimensions")
    sizes = tuple(ANY if size.is_dynamic else size.get_length() for size in shape)
    return TensorSpec(names[0] if names else fallback, datatype, sizes)


def _unique(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """One name may belong to two ports: an output that is an input passed on."""
    seen: set[str] = set()
    found: list[TensorSpec] = []
    for place, spec in enumerate(specs):
        name = spec.name if spec.name not in seen else f"{spec.name}_{place}"
        seen.add(name)
        found.append(TensorSpec(name, spec.datatype, spec.shape))
    return tuple(found)


def _widen_bfloat16(model: Any) -> None:
    """Inputs and outputs in bfloat16, which numpy has not, as float32."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    changed = False
    for place, port in enumerate(model.inputs):
        if port.element_type == openvino.Type.bf16:
            steps.input(place).tensor().set_element_type(openvino.Type.f32)
            changed = True
    for place, port in enumerate(model.outputs):
        if port.element_type == openvino.Type.bf16:
            steps.output(place).tensor().set_element_type(openvino.Type.f32)
            changed = True
    if changed:
        steps.build()


def _as_tensor(weights: memoryview) -> Any:
    """The map itself as a tensor: OpenVINO asks for writable memory, and does not write into constants."""
    import openvino

    size = len(weights)
    if not size:
        return openvino.Tensor(np.zeros(0, np.uint8))
    address = np.frombuffer(weights, np.uint8).ctypes.data
    pages = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return openvino.Tensor(pages, shared_memory=True)

"""PyTorch: exported programs, TorchScript, and weights with the class that they belong to.

=================== ====================================================================================
file                what it is
=================== ====================================================================================
``.pt2``            ``torch.export.save``'s program, or a package of compiled code (AOTInductor). A sandbox
                    runs no code from what can be written, which is where a package is unpacked: there it
                    has to be a library
``.so``             the library of such a package; ``engine.schema`` says what it takes, in its order
``.pt``, ``.ts``    TorchScript; ``engine.schema`` says what it takes
``.safetensors``    weights; ``engine.entry`` names what makes the module, ``engine.schema`` what it takes.
                    They stay in the map of the decrypted file, one copy for all workers
=================== ====================================================================================

All of these run code of the model's: in a worker inside its sandbox, and unconfined where its owner packs it.
A compiler cannot be started in a sandbox: what is to be compiled is compiled before it is packed
(``compile_program``).
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import threading
import types
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloister.engines.engine import Array, Arrays, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.schema import ANY, DATATYPE_OF, ModelSchema, Place, SharedSize, TensorSpec
from cloister.engines.threads import available_cores, infer_in_threads
from cloister.errors import ConfigError, MissingDependencyError

ROWS = 16
MAX_SIZE = 1 << 48
_INPUT = re.compile(r"L\['(\w+)'\]")
_SIZE = r"L\['\w+'\]\.size\(\)\[\d+\]"
_SAME = re.compile(rf"{_SIZE} == {_SIZE}")
"""Guards of PyTorch's own, which say what sizes a program was exported for."""
CALL_MEMBER = "cloister_call"
"""Under this name a compiled package carries how it is called."""
Forward = Callable[[dict[str, Any]], Any]


def import_torch() -> Any:
    """The package.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "the engine torch needs PyTorch", hint="pip install 'cloister[torch]'"
        ) from error
    return torch


def open_model(files: ModelFiles, file: str, options: EngineOptions) -> TorchEngine:
    """Load a model.

    Raises:
        ConfigError: the file is in none of these forms, or something that it needs is not said.
        MissingDependencyError: PyTorch is not installed.
    """
    torch = import_torch()
    streams = options.streams or 1
    torch.set_num_threads(max(1, (options.threads or available_cores()) // streams))
    if options.precision not in ("", "fp32", "bf16"):
        raise ConfigError(f"torch computes in fp32 or bf16, not in {options.precision!r}")
    load = _FORMS.get(file[file.rfind(".") :])
    if load is None:
        raise ConfigError(f"torch reads {', '.join(_FORMS)}, not {file[:256]!r}")
    try:
        forward, schema = load(files, file, options)
    except (ConfigError, MissingDependencyError):
        raise
    except Exception as error:  # the model's own code may raise anything
        raise ConfigError(f"PyTorch cannot load {file[:256]!r}: {type(error).__name__}") from error
    return TorchEngine(
        forward, schema, streams=streams, rows=options.rows or ROWS, bfloat16=options.precision == "bf16"
    )


class TorchEngine:
    """A module in inference mode."""

    def __init__(
        self, forward: Forward, schema: ModelSchema, *, streams: int, rows: int, bfloat16: bool
    ) -> None:
        self._forward: Forward | None = forward
        self._torch = import_torch()
        self.schema = schema
        self.streams = streams
        most = rows if schema.most_rows == ANY else min(rows, schema.most_rows)
        self.rows = most if schema.joins else 1
        self._bfloat16 = bfloat16
        self._turns = threading.BoundedSemaphore(streams)

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        torch, forward = self._torch, self._forward
        assert forward is not None
        tensors = {name: self._tensor(name, array) for name, array in inputs.items()}
        try:
            with self._turns, torch.inference_mode(), self._precision():
                found = forward(tensors)
        except (IndexError, AssertionError) as error:
            # A token that the model has not, or sizes that an exported program does not take together.
            if isinstance(error, AssertionError) and not str(error).startswith("Guard failed"):
                raise
            raise self.schema.refusal("the model could not compute with these inputs") from error
        return name_outputs(found, self.schema)

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        return infer_in_threads(self.infer, batches, self.streams)

    def close(self) -> None:
        self._forward = None

    def _precision(self) -> AbstractContextManager[Any]:
        if self._bfloat16:
            found: AbstractContextManager[Any] = self._torch.autocast("cpu", dtype=self._torch.bfloat16)
            return found
        return nullcontext()

    def _tensor(self, name: str, array: Array) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is read-only: nothing here writes into an input
            tensor = self._torch.from_numpy(np.asarray(array, order="C"))
        return tensor.to(self._torch.bfloat16) if self.schema.input(name).datatype == "BF16" else tensor


def name_outputs(found: Any, schema: ModelSchema) -> dict[str, Array]:
    """A module's outputs by the schema's names, as arrays.

    Raises:
        ValueError: there are fewer than the schema has.
    """
    if isinstance(found, dict):
        listed = [found[spec.name] for spec in schema.outputs]
    else:
        listed = list(found) if isinstance(found, list | tuple) else [found]
    if len(listed) < len(schema.outputs):
        raise ValueError("the model gave fewer outputs than its schema has")
    pairs = zip(schema.outputs, listed, strict=False)
    return {spec.name: _array(tensor) for spec, tensor in pairs}


def _array(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    found: Array = tensor.numpy()
    return found


def _load_program(files: ModelFiles, file: str, options: EngineOptions) -> tuple[Forward, ModelSchema]:
    torch = import_torch()
    content = files.read(file)
    if is_compiled(content):
        return _load_compiled(content, options)
    try:
        program = torch.export.load(io.BytesIO(content))
    except RuntimeError as error:
        # Its message tells to look at what was logged: that a class is not registered, in most cases.
        raise ConfigError(
            f"PyTorch cannot load the program {file[:256]!r}",
            hint="if its module answers with a class of a library, as those of transformers do, export one "
            "around it that gives a dictionary of tensors",
        ) from error
    call = read_call(program)
    module = program.module()
    return call.of(torch.compile(module) if options.compiled else module), call.schema


def _load_compiled(content: memoryview, options: EngineOptions) -> tuple[Forward, ModelSchema]:
    torch = import_torch()
    # Not torch._inductor.aoti_load_package, which asks a compiler what the processor can do. The loader takes
    # a path; in a worker this is its own folder in memory.
    with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        file.write(content)
        file.flush()
        package = torch._C._aoti.AOTIModelPackageLoader(
            file.name, "model", False, max(1, options.streams), -1
        )
    said = package.get_metadata().get(CALL_MEMBER, "")
    if said:
        call = msgspec.json.decode(said, type=Call)
        names, schema = [*call.places, *call.keys], call.schema
    else:
        schema = _said(options, "a compiled package that was not made by compile_program")
        names = [spec.name for spec in schema.inputs]
    return lambda inputs: package.boxed_run([inputs[name] for name in names]), schema


def _load_library(files: ModelFiles, file: str, options: EngineOptions) -> tuple[Forward, ModelSchema]:
    torch = import_torch()
    schema = _said(options, "a library")
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(files.path(file)), max(1, options.streams))
    names = [spec.name for spec in schema.inputs]
    return lambda inputs: runner.run([inputs[name] for name in names]), schema


def _load_script(files: ModelFiles, file: str, options: EngineOptions) -> tuple[Forward, ModelSchema]:
    torch = import_torch()
    schema = _said(options, "TorchScript")
    module = torch.jit.load(io.BytesIO(files.read(file)), map_location="cpu").eval()
    names = [spec.name for spec in schema.inputs]
    return lambda inputs: module(*(inputs[name] for name in names)), schema


def _load_weights(files: ModelFiles, file: str, options: EngineOptions) -> tuple[Forward, ModelSchema]:
    torch = import_torch()
    schema = _said(options, "a file of weights")
    script, _, name = options.entry.partition(":")
    if not script or not name:
        raise ConfigError("weights need engine.entry: file.py:Name of what makes the module")
    make = getattr(_run_script(files, script), name, None)
    if make is None:
        raise ConfigError(f"{script[:256]!r} has no {name[:64]!r}")
    weights = map_weights(files.read(file))
    with torch.device("meta"):
        module = make()
    module.load_state_dict(weights, strict=True, assign=True)
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        # It has values that its weights do not hold, so it has to make them.
        module = make()
        module.load_state_dict(weights, strict=True, assign=True)
    module.eval()
    return lambda inputs: module(**inputs), schema


def map_weights(content: memoryview) -> dict[str, Any]:
    """The tensors of a safetensors file where they lie.

    Source: safetensors, README "Format": 8 bytes of length, JSON with dtype, shape and data_offsets, data.
    """
    torch = import_torch()
    size = int.from_bytes(content[:8], "little")
    head = msgspec.json.decode(content[8 : 8 + size])
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are read-only, which is what they should be
        for name, item in head.items():
            if name == "__metadata__":
                continue
            first, last = item["data_offsets"]
            dtype = getattr(torch, _SAFETENSORS[item["dtype"]])
            data = content[8 + size + first : 8 + size + last]
            flat = torch.frombuffer(data, dtype=dtype) if last > first else torch.empty(0, dtype=dtype)
            found[name] = flat.reshape(item["shape"])
    return found


class Call(msgspec.Struct, frozen=True):
    """How a program is called: its inputs by place and by name, as it was exported with them."""

    schema: ModelSchema
    places: list[str]
    keys: list[str]

    def of(self, module: Any) -> Forward:
        """The module as a function of inputs by name."""
        places, keys = self.places, self.keys
        return lambda inputs: module(*(inputs[name] for name in places), **{key: inputs[key] for key in keys})


def read_call(program: Any, *, compiled: bool = False) -> Call:
    """What an exported program takes and gives, and how.

    Args:
        compiled: nothing will look at the sizes of its inputs any more, but the schema.
    Raises:
        ConfigError: an input or output that is not a tensor; or compiled, and its sizes depend on each other
            in a way that a schema does not say.
    """
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = [str(name) for name in signature.user_inputs]
    placed, named = (program.call_spec.in_spec.child(place) for place in (0, 1))
    count, keys = placed.num_leaves, [str(key) for key in named.context]
    if count + len(keys) != len(inputs):
        raise ConfigError("the program was exported with nested inputs, and takes no plain tensors")
    names = [*inputs[:count], *keys]
    given = _output_names(program.call_spec.out_spec, len(signature.user_outputs))
    outputs = zip(given, signature.user_outputs, strict=True)
    schema = ModelSchema(
        tuple(_node_spec(name, nodes.get(node)) for name, node in zip(names, inputs, strict=True)),
        tuple(_node_spec(name, nodes.get(node)) for name, node in outputs),
        _read_sizes(program, {name: nodes[node] for name, node in zip(names, inputs, strict=True)}, compiled),
    )
    return Call(schema, names[:count], keys)


def _read_sizes(program: Any, inputs: dict[str, Any], compiled: bool) -> tuple[SharedSize, ...]:
    """What the program takes for granted of its inputs' open sizes."""
    bounds = {str(symbol): found for symbol, found in program.range_constraints.items()}
    places: dict[str, list[Place]] = {}
    for name, node in inputs.items():
        for axis, size in enumerate(node.meta["val"].shape):
            if not isinstance(size, int):
                places.setdefault(str(size), []).append(Place(name, axis))
    if compiled:
        guards = [str(guard) for guard in getattr(program, "_guards_code", None) or ()]
        related = [
            text for text in guards if len(set(_INPUT.findall(text))) > 1 and not _SAME.fullmatch(text)
        ]
        if related or not all(symbol.isidentifier() for symbol in places):
            raise ConfigError(
                "the sizes of the program's inputs depend on each other, which compiled code does not check",
                hint="pack the exported program as it is, without --compile",
            )
    found = []
    for symbol, listed in places.items():
        least, most = _bounds(bounds.get(symbol))
        # Programs are exported for two rows or more, and right for one. Of other sizes nobody can say so.
        if all(place.axis == 0 for place in listed) or not compiled:
            least = least if least > 2 else 0
        if least or most != ANY or (len(listed) > 1 and any(place.axis for place in listed)):
            found.append(SharedSize(tuple(listed), least, most))
    return tuple(found)


def _bounds(found: Any) -> tuple[int, int]:
    """Of a size: the least, and the most or ``ANY``."""
    if found is None:
        return 0, ANY
    least, most = (int(each) if str(each).isdigit() else ANY for each in (found.lower, found.upper))
    return max(0, least), most if most < MAX_SIZE else ANY


def compile_program(program: Any, target: Path) -> ModelSchema:
    """Compile an exported program for this machine's processor into a package; returns its schema.

    Needs a C++ compiler. The package runs on processors with the same instructions only, and carries how it
    is called.

    Raises:
        ConfigError: as ``read_call``.
    """
    torch = import_torch()
    call = read_call(program, compiled=True)
    settings = {"aot_inductor.metadata": {CALL_MEMBER: msgspec.json.encode(call).decode()}}
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(target), inductor_configs=settings)
    return call.schema


def extract_library(package: Path, target: Path) -> ModelSchema:
    """The library of a package that ``compile_program`` made, and the schema that the package carries.

    Raises:
        ConfigError: it is no such package, or has weights beside its library.
    """
    try:
        with zipfile.ZipFile(package) as archive:
            (library,) = [name for name in archive.namelist() if name.endswith(".so")]
            said = msgspec.json.decode(archive.read(library.removesuffix(".so") + "_metadata.json"))
            target.write_bytes(archive.read(library))
        return msgspec.json.decode(said[CALL_MEMBER], type=Call).schema
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
        raise ConfigError(f"{package.name} is no package of compile_program") from error


def _output_names(spec: Any, count: int) -> list[str]:
    keys = spec.context if spec.type is dict else None
    if isinstance(keys, list) and len(keys) == count:
        return [str(key) for key in keys]
    return [f"output_{place}" for place in range(count)]


def _node_spec(name: str, node: Any) -> TensorSpec:
    value = None if node is None else node.meta.get("val")
    dtype = None if value is None else getattr(value, "dtype", None)
    datatype = None if dtype is None else DATATYPE_OF.get(str(dtype).removeprefix("torch."))
    if value is None or datatype is None:
        raise ConfigError(f"the program's {name[:64]!r} is not a tensor of a type that requests have")
    return TensorSpec(name, datatype, tuple(size if isinstance(size, int) else ANY for size in value.shape))


def _said(options: EngineOptions, what: str) -> ModelSchema:
    if options.schema is None:
        raise ConfigError(f"{what} does not say what the model takes: engine.schema must")
    return options.schema


def _run_script(files: ModelFiles, name: str) -> types.ModuleType:
    """A module of the archive's, run from memory."""
    module = types.ModuleType(name.rpartition("/")[2].removesuffix(".py"))
    module.__file__ = name
    sys.modules[module.__name__] = module
    exec(compile(bytes(files.read(name)), name, "exec"), module.__dict__)  # noqa: S102 (as a handler would be)
    return module


def is_compiled(content: memoryview) -> bool:
    """Whether a ``.pt2`` is a package of compiled code, not a program."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any("aotinductor" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


_FORMS: dict[str, Callable[[ModelFiles, str, EngineOptions], tuple[Forward, ModelSchema]]] = {
    ".pt2": _load_program,
    ".so": _load_library,
    ".pt": _load_script,
    ".ts": _load_script,
    ".safetensors": _load_weights,
}
_SAFETENSORS = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}

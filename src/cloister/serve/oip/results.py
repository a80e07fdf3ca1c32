"""What a handler returned, as output tensors.

========================================== ==============================================================
a handler's result                         outputs
========================================== ==============================================================
{"outputs": [{"name", "data", ...}, ...]}  those, with datatype and shape filled in where they are missing
{"name": array, ...}                       one tensor for each name
an array (numpy, torch), list, number,     one tensor, named as the one output that the caller asked for,
text or bytes                              else ``output-0``
anything else                              one BYTES tensor that holds it as JSON
========================================== ==============================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from cloister.errors import MalformedInput
from cloister.serve.oip.datatypes import (
    DATATYPES,
    Array,
    datatype_of,
    decode_json,
    encode_json,
    encode_raw,
)
from cloister.serve.oip.nested import flatten

DEFAULT_NAME = "output-0"


@dataclass(frozen=True, slots=True)
class Output:
    """One output tensor; ``data`` is an array, or lists that a handler has already made for JSON."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Any
    parameters: Mapping[str, Any]

    def raw(self) -> bytes:
        """Its binary form."""
        array = self.data
        if not isinstance(array, np.ndarray):
            array = decode_json(self.datatype, self.shape, array)
        return encode_raw(self.datatype, array)

    def json(self) -> Any:
        """Its elements for JSON."""
        return encode_json(self.data) if isinstance(self.data, np.ndarray) else self.data


def to_outputs(result: Any, default_name: str = DEFAULT_NAME) -> list[Output]:
    """The output tensors of one request's result.

    Raises:
        TypeError, ValueError: it cannot be expressed.
    """
    if isinstance(result, Mapping):
        listed = result.get("outputs")
        if isinstance(listed, list) and all(isinstance(item, Mapping) and "name" in item for item in listed):
            return [_declared(item) for item in listed]
        try:
            return [_from_array(str(name), value) for name, value in result.items()]
        except TypeError:
            return [_as_text(default_name, result)]
    try:
        return [_from_array(default_name, result)]
    except TypeError:
        return [_as_text(default_name, result)]


def _declared(item: Mapping[str, Any]) -> Output:
    """An output in the protocol's own form; lists for JSON pass as the handler made them."""
    name, data, datatype = str(item["name"]), item.get("data"), item.get("datatype")
    parameters = {k: v for k, v in (item.get("parameters") or {}).items() if k != "binary_data_size"}
    if isinstance(data, list | tuple) and datatype in DATATYPES and "shape" in item:
        return Output(name, datatype, [int(size) for size in item["shape"]], data, parameters)
    found, array = _to_array(data)
    shape = [int(size) for size in item.get("shape", array.shape)]
    if -1 in shape or int(np.prod(shape, dtype=object)) != array.size:
        raise ValueError(f"output {name[:64]!r}: shape and data do not go together")
    return Output(name, found if datatype is None else _known(datatype), shape, array, parameters)


def _known(datatype: Any) -> str:
    if datatype not in DATATYPES:
        raise ValueError("an output has an unknown datatype")
    return str(datatype)


def _from_array(name: str, value: Any) -> Output:
    datatype, array = _to_array(value)
    return Output(name, datatype, array.shape or (1,), array, {})


def _as_text(name: str, value: Any) -> Output:
    text = msgspec.json.encode(value, enc_hook=_plain)
    return Output(name, "BYTES", (1,), _objects([text]), {"content_type": "application/json"})


def _plain(value: Any) -> Any:
    """What numpy and torch have inside JSON, as lists and numbers."""
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _to_array(value: Any) -> tuple[str, Array]:
    """Datatype and array of one value.

    Raises:
        TypeError: it is none.
    """
    if callable(getattr(value, "detach", None)):  # a torch tensor, without importing torch
        tensor = value.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            return "BF16", tensor.float().numpy()
        value = tensor.numpy()
    if isinstance(value, str | bytes | bytearray | memoryview):
        return "BYTES", _objects([value])
    if type(value) in (bool, int, float):
        return _from_elements([value], (1,))
    if isinstance(value, list | tuple):
        return _from_lists(value)
    if not hasattr(value, "__array__"):
        raise TypeError(f"{type(value).__name__} is no tensor")
    array = np.asarray(value)
    datatype = datatype_of(array.dtype)
    if datatype == "BYTES" and array.dtype.kind == "O":
        return _from_elements(array.reshape(-1).tolist(), array.shape)
    return datatype, array


def _from_lists(value: Sequence[Any]) -> tuple[str, Array]:
    if value and (hasattr(value[0], "__array__") or callable(getattr(value[0], "detach", None))):
        parts = [_to_array(item) for item in value]
        if len({(datatype, array.shape) for datatype, array in parts}) != 1:
            raise TypeError("arrays of different shape or datatype")
        return parts[0][0], np.stack([array for _, array in parts])
    try:
        flat, lengths = flatten(value)
    except MalformedInput as error:
        raise TypeError(error.message) from error
    return _from_elements(flat, tuple(lengths))


def _from_elements(flat: list[Any], shape: Sequence[int]) -> tuple[str, Array]:
    types = set(map(type, flat))
    if any(issubclass(kind, np.generic) for kind in types):
        flat = [item.item() if isinstance(item, np.generic) else item for item in flat]
        types = set(map(type, flat))
    if types and types <= {str, bytes}:
        return "BYTES", _objects(flat).reshape(shape)
    if types == {bool}:
        return "BOOL", np.array(flat, np.bool_).reshape(shape)
    if types == {int} and min(flat) >= -(1 << 63) and max(flat) < 1 << 63:
        return "INT64", np.array(flat, np.int64).reshape(shape)
    if types <= {int, float}:
        try:
            return "FP64", np.array(flat, np.float64).reshape(shape)
        except OverflowError as error:
            raise TypeError("a number that no datatype has") from error
    raise TypeError("elements of types that no datatype has")


def _objects(elements: Sequence[Any]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array

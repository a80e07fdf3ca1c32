"""An inference request: JSON, with tensors inside it or in binary behind it.

======== ===================== =============================================================
offset   field                 meaning
======== ===================== =============================================================
0        JSON                  the whole body, or the first Inference-Header-Content-Length bytes
then     tensors               binary inputs, one after the other, in the order of ``inputs``;
                               each as long as its parameter ``binary_data_size`` says
======== ===================== =============================================================

Source: Open Inference Protocol, specification/protocol/inference_rest.md "Inference Request JSON Object";
Triton, extension "binary tensor data".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from cloister.errors import MalformedInput
from cloister.serve.oip.datatypes import Array, check_datatype, decode_json, decode_raw, parse_shape

MAX_TENSORS = 1024
_UNSUPPORTED = ("shared_memory_region", "classification")


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output tensor that the caller asked for."""

    name: str
    binary: bool


class InferRequest(dict[str, Any]):
    """The request as a handler gets it: the JSON object as the caller sent it.

    ``data`` of an input is what the JSON said, or a numpy array where the tensor came in binary.
    """

    arrays: dict[str, Array]
    """Every input as a numpy array of the declared datatype and shape, by name."""
    outputs: tuple[WantedOutput, ...]
    """What the caller asked for; empty means all."""
    binary: bool
    """Whether outputs that are not in ``outputs`` are wanted in binary form."""

    @property
    def id(self) -> str:
        """The caller's id of the request; empty if it gave none."""
        found: str = self.get("id") or ""
        return found

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The request's parameters."""
        found: Mapping[str, Any] = self.get("parameters") or {}
        return found


def parse_header_length(value: str) -> int | None:
    """Value of the header ``Inference-Header-Content-Length``; None if there is none.

    Raises:
        MalformedInput: not a length.
    """
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise MalformedInput("Inference-Header-Content-Length is not a number")
    return int(value)


def parse_request(body: bytes | memoryview, header_bytes: int | None = None) -> InferRequest:
    """A request from its body. An optional member that is null counts as absent: KServe's clients write such.

    Args:
        header_bytes: length of the JSON part; None if it is the whole body.
    Raises:
        MalformedInput: not a request, or a tensor whose data do not go with its datatype and shape.
    """
    view = memoryview(body)
    if header_bytes is not None and header_bytes > len(view):
        raise MalformedInput(
            f"Inference-Header-Content-Length is {header_bytes}, the body has {len(view)} bytes"
        )
    head = view if header_bytes is None else view[:header_bytes]
    request = InferRequest(_decode_object(head))
    if not isinstance(request.get("id"), str | None):
        raise MalformedInput("id is not a string")
    parameters = _check_parameters(request, "the request")
    request.binary = _flag(parameters, "binary_data_output")
    request.outputs = _parse_wanted(request.get("outputs"), default_binary=request.binary)
    request.arrays = _parse_inputs(request.get("inputs"), view[len(head) :])
    return request


def _decode_object(head: memoryview) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = _decode_lenient(bytes(head))
    if not isinstance(document, dict):
        raise MalformedInput("the request is not a JSON object")
    return document


def _decode_lenient(head: bytes) -> Any:
    """Python's own decoder takes NaN and Infinity, which tensors of clients hold."""
    try:
        if b"\\ud" in head.lower():  # it takes halves of surrogate pairs too, which no answer could repeat
            raise ValueError("surrogates")
        return json.loads(head)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("the request is not JSON") from error


def _check_parameters(owner: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict) or not all(
        isinstance(value, str | int | float | bool) for value in parameters.values()
    ):
        raise MalformedInput(f"parameters of {what} are not names with strings, numbers or booleans")
    return parameters


def _check_tensor_parameters(owner: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = _check_parameters(owner, what)
    for name in _UNSUPPORTED:
        if name in parameters:
            raise MalformedInput(f"parameter {name} is not supported here")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedInput(f"parameter {name} is not true or false")
    return value


def _name(tensor: Any, what: str) -> str:
    if not isinstance(tensor, dict):
        raise MalformedInput(f"{what} is not a JSON object")
    name = tensor.get("name")
    if not isinstance(name, str) or not name:
        raise MalformedInput(f"{what} has no name")
    return name


def _parse_wanted(listed: Any, *, default_binary: bool) -> tuple[WantedOutput, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise MalformedInput("outputs is not a list of outputs")
    found: dict[str, WantedOutput] = {}
    for tensor in listed:
        name = _name(tensor, "an output")
        if name in found:
            raise MalformedInput("an output is asked for twice")
        parameters = _check_tensor_parameters(tensor, "an output")
        found[name] = WantedOutput(name, _flag(parameters, "binary_data", default_binary))
    return tuple(found.values())


def _parse_inputs(listed: Any, tensors: memoryview) -> dict[str, Array]:
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_TENSORS:
        raise MalformedInput("inputs is not a list of tensors")
    arrays: dict[str, Array] = {}
    offset = 0
    for tensor in listed:
        name = _name(tensor, "an input")
        if name in arrays:
            raise MalformedInput("two inputs have the same name")
        size = _check_tensor_parameters(tensor, "an input").get("binary_data_size")
        try:
            datatype, shape = check_datatype(tensor.get("datatype")), parse_shape(tensor.get("shape"))
            if size is None:
                if tensor.get("data") is None:
                    raise MalformedInput("no data, and no parameter binary_data_size")
                arrays[name] = decode_json(datatype, shape, tensor["data"])
                continue
            if tensor.get("data") is not None:
                raise MalformedInput("both data and the parameter binary_data_size")
            if type(size) is not int or not 0 <= size <= len(tensors) - offset:
                raise MalformedInput("parameter binary_data_size is not a length, or over what the body has")
            array = decode_raw(datatype, shape, tensors[offset : offset + size])
        except MalformedInput as error:
            raise MalformedInput(f"input {_shown(name)}: {error.message}") from error
        arrays[name] = tensor["data"] = array
        offset += size
    if offset != len(tensors):
        raise MalformedInput(f"{len(tensors) - offset} bytes follow the last binary tensor")
    return arrays


def _shown(name: str) -> str:
    return repr(name[:64])

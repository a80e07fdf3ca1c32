"""``ModelInfer`` of gRPC in terms of the HTTP form, which is what workers speak.

A request becomes JSON with binary tensors behind it, an answer comes as such and is taken apart again: raw
contents pass through uncopied in meaning, typed ones are packed and unpacked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from cloister.errors import MalformedInput, ModelFailed
from cloister.serve.grpc.messages import message
from cloister.serve.oip.datatypes import DATATYPES, as_bytes, check_datatype, decode_raw, encode_raw

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
Scalar = bool | int | float | str


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Scalar] = {}


class _Answer(msgspec.Struct):
    outputs: list[_Output]
    model_name: str = ""
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Scalar] = {}


_answers = msgspec.json.Decoder(_Answer)


def to_http(request: Any) -> tuple[bytes, int]:
    """Body of a ``ModelInferRequest``, and the length of its JSON part.

    Raises:
        MalformedInput: contents that do not go with the inputs.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise MalformedInput(f"{len(raw)} raw contents for {len(request.inputs)} inputs")
    inputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for index, tensor in enumerate(request.inputs):
        parameters = _scalars(tensor.parameters)
        if raw:
            if tensor.HasField("contents"):
                raise MalformedInput("an input has contents beside raw_input_contents")
            tensors.append(raw[index])
        else:
            tensors.append(_pack(tensor))
        parameters["binary_data_size"] = len(tensors[-1])
        inputs.append(
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": parameters,
            }
        )
    document: dict[str, Any] = {
        "inputs": inputs,
        "outputs": [
            {"name": wanted.name, "parameters": {**_scalars(wanted.parameters), "binary_data": True}}
            for wanted in request.outputs
        ],
        "parameters": {**_scalars(request.parameters), "binary_data_output": True},
    }
    if request.id:
        document["id"] = request.id
    head = msgspec.json.encode(document)
    return b"".join((head, *tensors)), len(head)


def to_message(body: bytes | memoryview, header_bytes: int, *, typed: bool) -> Any:
    """A ``ModelInferResponse`` from a worker's answer.

    Args:
        typed: put the elements into typed contents, as the request did; not possible with FP16 and BF16.
    Raises:
        ModelFailed: not an answer; a worker is a guest.
    """
    view = memoryview(body)
    try:
        answer = _answers.decode(view[:header_bytes])
        return _build(answer, view[header_bytes:], typed=typed)
    except (
        msgspec.DecodeError,
        UnicodeError,
        RecursionError,
        ValueError,
        TypeError,
        MalformedInput,
    ) as error:
        raise ModelFailed("the model's answer is not one of the Open Inference Protocol") from error


def _build(answer: _Answer, tensors: memoryview, *, typed: bool) -> Any:
    response = message("inference.ModelInferResponse")(
        model_name=answer.model_name, model_version=answer.model_version, id=answer.id
    )
    _set_parameters(response.parameters, answer.parameters)
    typed = typed and all(output.datatype in CONTENTS for output in answer.outputs)
    offset = 0
    for output in answer.outputs:
        size = output.parameters.pop("binary_data_size", None)
        if type(size) is not int or not 0 <= size <= len(tensors) - offset:
            raise ValueError("an output without its length")
        entry = response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        _set_parameters(entry.parameters, output.parameters)
        raw = tensors[offset : offset + size]
        if typed:
            array = decode_raw(output.datatype, output.shape, raw)
            elements = as_bytes(array) if output.datatype == "BYTES" else array.reshape(-1).tolist()
            getattr(entry.contents, CONTENTS[output.datatype]).extend(elements)
        else:
            response.raw_output_contents.append(bytes(raw))
        offset += size
    if offset != len(tensors):
        raise ValueError("more than the outputs")
    return response


def _pack(tensor: Any) -> bytes:
    """Binary form of typed contents."""
    datatype = check_datatype(tensor.datatype)
    field = CONTENTS.get(datatype)
    if field is None:
        raise MalformedInput(f"datatype {datatype} needs raw_input_contents")
    if any(found.name != field for found, _ in tensor.contents.ListFields()):
        raise MalformedInput(f"datatype {datatype} has its elements in {field}")
    elements = list(getattr(tensor.contents, field))
    if datatype == "BYTES":
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return encode_raw(datatype, array)
    wanted = DATATYPES[datatype]
    if wanted.kind not in "iu":
        return np.array(elements, wanted).tobytes()
    wide = np.array(elements, np.int64 if wanted.kind == "i" else np.uint64)
    narrow = wide.astype(wanted)
    if not np.array_equal(narrow, wide):
        raise MalformedInput(f"a number is out of the range of {datatype}")
    return narrow.tobytes()


def _scalars(parameters: Mapping[str, Any]) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise MalformedInput("a parameter has no value")
        found[name] = getattr(parameter, choice)
    return found


def _set_parameters(target: Any, parameters: Mapping[str, Scalar]) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value

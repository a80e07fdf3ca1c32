"""NumPy arrays as a request of the Open Inference Protocol, and its answer as arrays: binary both ways.

=========== =========================================================================
part        form
=========== =========================================================================
head        JSON: name, shape, datatype and length of each tensor; its length is in
            the header ``Inference-Header-Content-Length``
tensors     the tensors' bytes, one behind the other (``cloister.serve.oip.datatypes``)
=========== =========================================================================

Source: Open Inference Protocol, inference_rest.md; Triton, extension "binary tensor data".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from cloister.client.answer import Answer
from cloister.client.payload import OCTETS_TYPE
from cloister.errors import MalformedInput
from cloister.serve.oip.datatypes import (
    check_datatype,
    datatype_of,
    decode_json,
    decode_raw,
    encode_raw,
    parse_shape,
)

Array = NDArray[Any]
LENGTH_HEADER = "inference-header-content-length"


def encode_tensors(inputs: Mapping[str, Array]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request.

    Raises:
        MalformedInput: no array, or one of a type that the protocol does not have.
    """
    if not inputs:
        raise MalformedInput("no input array", hint="give at least one, by its name")
    listed: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for name, array in inputs.items():
        try:
            datatype = datatype_of(array.dtype)
            raw = encode_raw(datatype, array)
        except (TypeError, ValueError) as error:
            raise MalformedInput(f"array {name[:64]!r} of dtype {array.dtype} is no tensor") from error
        tensors.append(raw)
        listed.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": len(raw)},
            }
        )
    head = json.dumps({"inputs": listed, "parameters": {"binary_data_output": True}}).encode()
    return b"".join((head, *tensors)), {"content-type": OCTETS_TYPE, LENGTH_HEADER: str(len(head))}


def decode_tensors(answer: Answer) -> dict[str, Array]:
    """The output arrays by name, in the answer's order.

    Raises:
        MalformedInput: not an answer of the protocol.
    """
    length = answer.header(LENGTH_HEADER)
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise MalformedInput("answer: Inference-Header-Content-Length is not a number")
    end = len(answer.content) if length is None else int(length)
    if end > len(answer.content):
        raise MalformedInput(f"answer: head of {end} bytes in {len(answer.content)}")
    try:
        document = json.loads(answer.content[:end])
    except (ValueError, RecursionError) as error:
        raise MalformedInput("answer is not one of the Open Inference Protocol") from error
    outputs = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(outputs, list):
        raise MalformedInput("answer is not one of the Open Inference Protocol: no outputs")
    tensors = memoryview(answer.content)[end:]
    found: dict[str, Array] = {}
    for output in outputs:
        name, array, taken = _decode_output(output, tensors)
        if name in found:
            raise MalformedInput(f"answer: two outputs named {name[:64]!r}")
        found[name] = array
        tensors = tensors[taken:]
    if len(tensors):
        raise MalformedInput(f"answer: {len(tensors)} bytes behind the last tensor")
    return found


def _decode_output(output: Any, tensors: memoryview) -> tuple[str, Array, int]:
    if not isinstance(output, dict) or not isinstance(output.get("name"), str):
        raise MalformedInput("answer: an output without a name")
    datatype, shape = check_datatype(output.get("datatype")), parse_shape(output.get("shape"))
    parameters = output.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return output["name"], decode_json(datatype, shape, output.get("data")), 0
    if type(size) is not int or not 0 <= size <= len(tensors):
        raise MalformedInput("answer: binary_data_size is not a length of what follows")
    return output["name"], decode_raw(datatype, shape, tensors[:size]), size

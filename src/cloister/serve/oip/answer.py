"""An inference answer: JSON, with the outputs inside it or in binary behind it (as in ``request``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cloister.errors import MalformedInput
from cloister.serve.oip.request import InferRequest, WantedOutput
from cloister.serve.oip.results import DEFAULT_NAME, Output, to_outputs

JSON_TYPE = b"application/json"
BINARY_TYPE = b"application/octet-stream"


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The body of an answer; ``header_bytes`` is the length of its JSON part if tensors follow it."""

    body: bytes
    header_bytes: int | None


def render_answer(request: InferRequest, result: Any, *, model_name: str, model_version: str) -> InferAnswer:
    """The answer to ``request`` from what the handler returned.

    Raises:
        MalformedInput: the caller asked for an output that is not there, or for one as JSON that is not text.
        TypeError, ValueError: the result cannot be expressed as tensors.
    """
    wanted = request.outputs
    outputs = to_outputs(result, wanted[0].name if len(wanted) == 1 else DEFAULT_NAME)
    document: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if request.id:
        document["id"] = request.id
    if isinstance(result, Mapping) and isinstance(result.get("outputs"), list):
        # A handler that speaks the protocol itself, or TorchServe's envelope around it.
        document.update(
            (k, v) for k, v in result.items() if k in ("id", "model_name", "model_version", "parameters")
        )
    listed: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for output, binary in _chosen(outputs, wanted, default_binary=request.binary):
        entry: dict[str, Any] = {
            "name": output.name,
            "shape": list(output.shape),
            "datatype": output.datatype,
        }
        parameters = dict(output.parameters)
        if binary:
            tensors.append(output.raw())
            parameters["binary_data_size"] = len(tensors[-1])
        if parameters:
            entry["parameters"] = parameters
        if not binary:
            entry["data"] = output.json()
        listed.append(entry)
    document["outputs"] = listed
    head = msgspec.json.encode(document)
    if not tensors:
        return InferAnswer(head, None)
    return InferAnswer(b"".join((head, *tensors)), len(head))


def _chosen(
    outputs: Sequence[Output], wanted: Sequence[WantedOutput], *, default_binary: bool
) -> list[tuple[Output, bool]]:
    if not wanted:
        return [(output, default_binary) for output in outputs]
    by_name = {output.name: output for output in outputs}
    missing = [item.name for item in wanted if item.name not in by_name]
    if missing:
        raise MalformedInput(f"the model has no output {missing[0][:64]!r}")
    return [(by_name[item.name], item.binary) for item in wanted]

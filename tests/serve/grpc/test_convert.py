"""``ModelInfer`` in terms of the HTTP form, and answers of hostile workers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput, ModelFailed
from cloister.serve.grpc.convert import to_http, to_message
from cloister.serve.grpc.messages import message
from cloister.serve.oip.request import parse_request

OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}


def answer(tensors: bytes = b"\0\0\0\0", *, typed: bool = False, **members: Any) -> Any:
    head = json.dumps({"model_name": "m", "outputs": [OUTPUT], **members}).encode()
    return to_message(head + tensors, len(head), typed=typed)


def test_request_is_read_as_it_was_sent() -> None:
    """Id, parameters of every kind, raw tensors and wanted outputs survive the way to the worker."""
    request = message("inference.ModelInferRequest")(id="7", raw_input_contents=[b"\1\0", b"\1\0\0\0a"])
    request.parameters["b"].bool_param = True
    request.parameters["i"].int64_param = -5
    request.parameters["s"].string_param = "x"
    request.parameters["d"].double_param = 0.5
    request.parameters["u"].uint64_param = (1 << 64) - 1
    request.inputs.add(name="x", datatype="UINT16", shape=[1])
    request.inputs.add(name="y", datatype="BYTES", shape=[1])
    request.outputs.add(name="z")
    found = parse_request(*to_http(request))
    assert found.id == "7"
    assert {name: found.parameters[name] for name in "bisdu"} == {
        "b": True,
        "i": -5,
        "s": "x",
        "d": 0.5,
        "u": (1 << 64) - 1,
    }
    assert found.arrays["x"].tolist() == [1]
    assert found.arrays["y"].tolist() == [b"a"]
    assert [(item.name, item.binary) for item in found.outputs] == [("z", True)]


@given(st.binary(max_size=100), st.lists(st.binary(max_size=8), max_size=3))
def test_any_message(raw: bytes, contents: list[bytes]) -> None:
    """Whatever protobuf lets pass raises nothing but MalformedInput on its way."""
    request = message("inference.ModelInferRequest")(raw_input_contents=contents)
    try:
        request.MergeFromString(raw)
    except Exception:  # not protobuf
        return
    try:
        parse_request(*to_http(request))
    except MalformedInput:
        return


def test_parameters_of_an_answer() -> None:
    """Parameters keep their kinds, and the length of the binary form is not shown."""
    found = answer(parameters={"b": True, "i": 1, "f": 0.5, "s": "x"})
    kinds = {name: item.WhichOneof("parameter_choice") for name, item in found.parameters.items()}
    assert kinds == {"b": "bool_param", "i": "int64_param", "f": "double_param", "s": "string_param"}
    assert not found.outputs[0].parameters


@pytest.mark.parametrize(
    "members",
    [
        {"outputs": 1},
        {"outputs": [{"name": "y"}]},
        {"outputs": [{**OUTPUT, "parameters": {}}]},
        {"outputs": [{**OUTPUT, "parameters": {"binary_data_size": 5}}]},
        {"outputs": [{**OUTPUT, "parameters": {"binary_data_size": True}}]},
        {"outputs": [{**OUTPUT, "shape": [1 << 63]}]},
        {"outputs": []},
        {"parameters": {"a": 1 << 64}},
        {"model_name": "\ud800"},
    ],
)
def test_answers_that_are_none(members: dict[str, Any]) -> None:
    """What a worker may send in place of an answer is the model's failure."""
    with pytest.raises(ModelFailed):
        answer(**members)


def test_typed_answer_that_does_not_fit() -> None:
    """A shape that does not go with the bytes is found where the elements are unpacked."""
    with pytest.raises(ModelFailed):
        answer(typed=True, outputs=[{**OUTPUT, "shape": [2]}])
    assert list(answer(typed=True).outputs[0].contents.fp32_contents) == [0]


def test_half_precision_comes_raw() -> None:
    """FP16 and BF16 have no typed contents, so that such an answer is raw as a whole."""
    outputs = [
        {"name": "h", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
        {"name": "n", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}},
    ]
    assert list(answer(b"\0\0\1", typed=True, outputs=outputs).raw_output_contents) == [b"\0\0", b"\1"]


@given(st.binary(max_size=200), st.integers(0, 250), st.booleans())
def test_any_bytes_of_a_worker(raw: bytes, length: int, typed: bool) -> None:
    """Arbitrary bytes from a worker raise nothing but ModelFailed."""
    with pytest.raises(ModelFailed):
        to_message(raw, length, typed=typed)

"""Inference requests: JSON, with tensors inside it or in binary behind it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from cloister.errors import MalformedInput
from cloister.serve.oip.request import parse_header_length, parse_request

TENSOR = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}


def body(**members: Any) -> bytes:
    return json.dumps({"inputs": [TENSOR], **members}).encode()


def test_json_request() -> None:
    """The handler sees the JSON as it was sent, and arrays of what it declared beside it."""
    sent = {"id": "7", "inputs": [TENSOR], "parameters": {"a": 1}, "outputs": [{"name": "y"}]}
    request = parse_request(json.dumps(sent).encode())
    assert request == sent
    assert request.arrays["x"].dtype == np.float32
    assert (request.id, request.parameters, request.binary) == ("7", {"a": 1}, False)
    assert [(item.name, item.binary) for item in request.outputs] == [("y", False)]


def test_request_of_the_public_client() -> None:
    """What ``tritonclient`` writes is read: binary tensors, text, outputs of both kinds."""
    numbers = InferInput("x", [2, 2], "FP32")
    numbers.set_data_from_numpy(np.array([[1, 2], [3, 4]], np.float32))
    words = InferInput("words", [2], "BYTES")
    words.set_data_from_numpy(np.array([b"one", "zwei"], dtype=object))
    plain = InferInput("plain", [1], "INT64")
    plain.set_data_from_numpy(np.array([5]), binary_data=False)
    raw, length = InferenceServerClient.generate_request_body(
        [numbers, words, plain],
        outputs=[InferRequestedOutput("a"), InferRequestedOutput("b", binary_data=False)],
        request_id="9",
    )
    request = parse_request(raw, length)
    assert request.arrays["x"].tolist() == [[1, 2], [3, 4]]
    assert request.arrays["words"].tolist() == [b"one", b"zwei"]
    assert request.arrays["plain"].tolist() == [5]
    assert request["inputs"][0]["data"] is request.arrays["x"]
    assert [(item.name, item.binary) for item in request.outputs] == [("a", True), ("b", False)]


def test_null_is_absent() -> None:
    """Clients that write every optional member, as null where there is none, are understood."""
    tensor = {**TENSOR, "parameters": None}
    request = parse_request(body(inputs=[tensor], id=None, parameters=None, outputs=None))
    assert (request.id, request.parameters, request.outputs) == ("", {}, ())
    head = body(inputs=[{**TENSOR, "data": None, "parameters": {"binary_data_size": 8}}])
    assert parse_request(head + bytes(8), len(head)).arrays["x"].tolist() == [0, 0]


def test_nan_and_infinity() -> None:
    """Numbers that JSON does not have, but that Python's clients write, are taken."""
    tensor = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [NaN, Infinity]}]}'
    assert np.isnan(parse_request(tensor.encode()).arrays["x"][0])
    with pytest.raises(MalformedInput):
        parse_request(tensor.replace('"x"', '"\\ud800"').encode())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not JSON"),
        (b'\xe4;"\xe4;"', "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "inputs is not"),
        (body(inputs=[]), "inputs is not"),
        (body(inputs=[1]), "an input is not"),
        (body(inputs=[{**TENSOR, "name": ""}]), "has no name"),
        (body(inputs=[TENSOR, TENSOR]), "the same name"),
        (body(inputs=[{**TENSOR, "datatype": "FP8"}]), "unknown datatype"),
        (body(inputs=[{**TENSOR, "shape": [3]}]), "does not go with"),
        (body(inputs=[{"name": "x", "datatype": "FP32", "shape": [1]}]), "no data"),
        (body(inputs=[{**TENSOR, "parameters": {"binary_data_size": 8}}]), "both data"),
        (body(inputs=[{**TENSOR, "parameters": {"shared_memory_region": "r"}}]), "not supported"),
        (body(inputs=[{**TENSOR, "parameters": {"a": [1]}}]), "parameters of an input"),
        (body(id=7), "id is not a string"),
        (body(parameters=[]), "parameters of the request"),
        (body(parameters={"binary_data_output": 1}), "not true or false"),
        (body(outputs={}), "outputs is not"),
        (body(outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
        (body(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "not supported"),
        (b'{"a":' * 100_000, "not JSON"),
    ],
)
def test_refused_with_a_reason(raw: bytes, reason: str) -> None:
    """Each kind of mistake is named."""
    with pytest.raises(MalformedInput, match=reason):
        parse_request(raw)


@pytest.mark.parametrize(
    ("size", "tensors", "reason"),
    [
        (8, b"1234", "over what the body has"),
        (-1, b"", "over what the body has"),
        (True, b"1", "over what the body has"),
        (4, b"1234", "does not go with"),
        (8, b"123456789", "1 bytes follow"),
    ],
)
def test_binary_lengths(size: Any, tensors: bytes, reason: str) -> None:
    """The binary part is exactly as long as its tensors say, and each as long as its shape says."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": size}}
    head = body(inputs=[tensor])
    with pytest.raises(MalformedInput, match=reason):
        parse_request(head + tensors, len(head))


@pytest.mark.parametrize("value", ["-1", "1.0", "1e3", "x", "9" * 20, "²"])
def test_header_length(value: str) -> None:
    """The header's value is a plain length or nothing."""
    with pytest.raises(MalformedInput):
        parse_header_length(value)
    assert parse_header_length("") is None


def test_header_longer_than_the_body() -> None:
    """A header that reaches beyond the body is refused."""
    with pytest.raises(MalformedInput, match="the body has"):
        parse_request(b"{}", 3)


@given(st.binary(max_size=200), st.none() | st.integers(0, 250))
def test_any_bytes(raw: bytes, length: int | None) -> None:
    """Arbitrary bytes raise nothing but MalformedInput."""
    with pytest.raises(MalformedInput):
        parse_request(raw, length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4)
    ),
    max_leaves=8,
)
MEMBERS = {
    "name": st.text(max_size=3) | JSON,
    "datatype": st.sampled_from(["FP32", "INT8", "BYTES", "BOOL", "BF16"]) | JSON,
    "shape": st.lists(st.integers(-2, 4), max_size=3) | JSON,
    "data": JSON,
    "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "a"]), st.integers(-1, 20)) | JSON,
}


@given(
    st.lists(st.fixed_dictionaries({}, optional=MEMBERS), max_size=3),
    st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), JSON),
    st.binary(max_size=20),
)
def test_any_json(inputs: list[Any], rest: dict[str, Any], tensors: bytes) -> None:
    """JSON of nearly the right form is read or raises MalformedInput, and nothing else."""
    head = json.dumps({"inputs": inputs, **rest}).encode()
    try:
        request = parse_request(head + tensors, len(head))
    except MalformedInput:
        return
    assert len(request.arrays) == len(inputs)

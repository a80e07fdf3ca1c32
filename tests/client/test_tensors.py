"""Arrays as requests of the Open Inference Protocol: the server reads them, no answer breaks the reader."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cloister.client.answer import Answer
from cloister.client.tensors import LENGTH_HEADER, decode_tensors, encode_tensors
from cloister.errors import MalformedInput
from cloister.serve.oip.answer import render_answer
from cloister.serve.oip.request import parse_request

KINDS = st.sampled_from(["?", "u1", "<i4", "<i8", "<f2", "<f4", "<f8"])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, max_side=4)


def answer_of(head: dict[str, Any], tensors: bytes = b"", *, length: str | None = None) -> Answer:
    """An answer with this head."""
    raw = json.dumps(head).encode()
    named = ((LENGTH_HEADER, str(len(raw)) if length is None else length),) if tensors or length else ()
    return Answer(200, named, raw + tensors)


@given(st.data())
def test_there_and_back(data: st.DataObject) -> None:
    """The server's own reader and writer give the arrays back, of every type and shape."""
    given_arrays = {
        name: data.draw(arrays.arrays(data.draw(KINDS), data.draw(SHAPES))) for name in ("a", "b")
    }
    body, headers = encode_tensors(given_arrays)
    request = parse_request(body, int(headers[LENGTH_HEADER]))
    answered = render_answer(request, dict(request.arrays), model_name="m", model_version="1")
    header = () if answered.header_bytes is None else ((LENGTH_HEADER, str(answered.header_bytes)),)
    found = decode_tensors(Answer(200, header, answered.body))
    assert list(found) == ["a", "b"]
    for name, array in given_arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_text_and_json() -> None:
    """Text is a BYTES tensor; outputs that come as JSON are arrays too."""
    body, headers = encode_tensors({"words": np.array(["one", "two"])})
    request = parse_request(body, int(headers[LENGTH_HEADER]))
    assert request.arrays["words"].tolist() == [b"one", b"two"]
    output = {"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2.5]}
    assert decode_tensors(answer_of({"outputs": [output]}))["y"].tolist() == [1.0, 2.5]


@pytest.mark.parametrize("inputs", [{}, {"c": np.zeros(2, complex)}, {"o": np.array([object()])}])
def test_no_tensor(inputs: Any) -> None:
    """An array of a type that the protocol does not have is refused before anything is sent."""
    with pytest.raises(MalformedInput):
        encode_tensors(inputs)


TENSOR = {"name": "y", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}}


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, (), b"not json"),
        answer_of({"outputs": {}}),
        answer_of({"outputs": [1]}),
        answer_of({"outputs": [TENSOR]}),
        answer_of({"outputs": [TENSOR]}, b"abc"),
        answer_of({"outputs": [TENSOR, TENSOR]}, b"abab"),
        answer_of({"outputs": [TENSOR]}, b"ab", length="-1"),
        answer_of({"outputs": [TENSOR]}, b"ab", length="9999999"),
        answer_of({"outputs": [TENSOR | {"datatype": "FLOAT"}]}, b"ab"),
        answer_of({"outputs": [TENSOR | {"shape": [3]}]}, b"ab"),
        answer_of({"outputs": [TENSOR | {"shape": "x"}]}, b"ab"),
        answer_of({"outputs": [TENSOR | {"parameters": {"binary_data_size": True}}]}, b"ab"),
        answer_of({"outputs": [TENSOR | {"parameters": {"binary_data_size": -1}}]}, b"ab"),
    ],
)
def test_answers_that_are_none(answer: Answer) -> None:
    """A forged or broken answer is a declared error."""
    with pytest.raises(MalformedInput):
        decode_tensors(answer)


@given(st.binary(max_size=60), st.none() | st.text(max_size=5))
def test_garbage(content: bytes, length: str | None) -> None:
    """Arbitrary bytes raise nothing else."""
    headers = () if length is None else ((LENGTH_HEADER, length),)
    with pytest.raises(MalformedInput):
        decode_tensors(Answer(200, headers, content))

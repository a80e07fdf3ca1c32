"""What a handler returned, as an answer of the protocol."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from tritonclient.http import InferResult

from cloister.errors import MalformedInput
from cloister.serve.oip.adapter import OipExchange
from cloister.serve.oip.request import InferRequest, parse_request

TENSOR = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}


def request(**members: Any) -> InferRequest:
    return parse_request(json.dumps({"inputs": [TENSOR], **members}).encode())


def answer(result: Any, **members: Any) -> dict[str, Any]:
    raw, headers = OipExchange(request(**members), "m", "1.0").render(result)
    assert headers == [(b"content-type", b"application/json")]
    document: dict[str, Any] = json.loads(raw)
    return document


def outputs(result: Any, **members: Any) -> list[tuple[str, str, list[int], Any]]:
    listed = answer(result, **members)["outputs"]
    return [(item["name"], item["datatype"], item["shape"], item["data"]) for item in listed]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (np.array([[1, 2]], np.float32), ("output-0", "FP32", [1, 2], [1, 2])),
        (np.float64(1.5), ("output-0", "FP64", [1], [1.5])),
        (np.array(["a", "b"]), ("output-0", "BYTES", [2], ["a", "b"])),
        ([1, 2, 3], ("output-0", "INT64", [3], [1, 2, 3])),
        ([[1, 2], [3, 4.5]], ("output-0", "FP64", [2, 2], [1, 2, 3, 4.5])),
        ([True, False], ("output-0", "BOOL", [2], [True, False])),
        (["cat", "dog"], ("output-0", "BYTES", [2], ["cat", "dog"])),
        ("cat", ("output-0", "BYTES", [1], ["cat"])),
        (b"cat", ("output-0", "BYTES", [1], ["cat"])),
        (7, ("output-0", "INT64", [1], [7])),
        ([], ("output-0", "FP64", [0], [])),
        ([1, np.float32(2)], ("output-0", "FP64", [2], [1, 2])),
        ([np.zeros(2, np.int8), np.ones(2, np.int8)], ("output-0", "INT8", [2, 2], [0, 0, 1, 1])),
    ],
)
def test_one_value(result: Any, expected: tuple[str, str, list[int], Any]) -> None:
    """An array, a list, a number and a text each become one tensor."""
    assert outputs(result) == [expected]


def test_arrays_by_name() -> None:
    """A dict of arrays becomes a tensor for each name, in its order."""
    found = outputs({"logits": np.zeros((1, 2), np.float16), "label": "cat", "score": 0.5})
    assert found == [
        ("logits", "FP16", [1, 2], [0, 0]),
        ("label", "BYTES", [1], ["cat"]),
        ("score", "FP64", [1], [0.5]),
    ]


@pytest.mark.parametrize("result", [{"a": {"b": 1}}, {"a": [1, "x"]}, [{"a": 1}], [[1], [1, 2]], None])
def test_anything_else_as_json(result: Any) -> None:
    """What is no tensor comes as one text that holds JSON, and says so."""
    (found,) = answer(result)["outputs"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [1])
    assert found["parameters"] == {"content_type": "application/json"}
    assert json.loads(found["data"][0]) == result


def test_arrays_inside_json() -> None:
    """Arrays inside of what is no tensor are lists in its JSON."""
    (found,) = answer({"boxes": [{"at": np.arange(2)}]})["outputs"]
    assert json.loads(found["data"][0]) == {"boxes": [{"at": [0, 1]}]}


def test_torch_tensors() -> None:
    """Tensors of torch are taken as they are, those that need a gradient and those in bfloat16 too."""
    torch = pytest.importorskip("torch")
    weights = torch.ones(2, requires_grad=True)
    assert outputs(weights) == [("output-0", "FP32", [2], [1, 1])]
    assert outputs(weights.to(torch.bfloat16)) == [("output-0", "BF16", [2], [1, 1])]


def test_the_protocols_own_form() -> None:
    """A handler, or TorchServe's envelope, that speaks the protocol is passed on, with what it left out."""
    result = {"id": "own", "outputs": [{"name": "y", "datatype": "FP32", "shape": (1,), "data": [0.1]}]}
    document = answer(result)
    assert document["id"] == "own"
    assert document["model_name"] == "m"
    assert document["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1], "data": [0.1]}]
    assert outputs({"outputs": [{"name": "y", "data": np.arange(2)}]}) == [("y", "INT64", [2], [0, 1])]


def test_what_the_request_said_is_repeated() -> None:
    """Id, name and version are in the answer; without an id there is none."""
    document = answer(1, id="7")
    assert (document["id"], document["model_name"], document["model_version"]) == ("7", "m", "1.0")
    assert "id" not in answer(1)


def test_outputs_that_were_asked_for() -> None:
    """Only the outputs asked for come, in that order; a single one gives its name to a lone result."""
    result = {"a": [1], "b": [2], "c": [3]}
    assert [item[0] for item in outputs(result, outputs=[{"name": "c"}, {"name": "a"}])] == ["c", "a"]
    assert outputs([5], outputs=[{"name": "mine"}])[0][0] == "mine"
    with pytest.raises(MalformedInput, match="no output 'd'"):
        outputs(result, outputs=[{"name": "d"}])


@pytest.mark.parametrize(
    "result",
    [
        {"outputs": [{"name": "y", "datatype": "INT32", "shape": [3], "data": np.arange(2)}]},
        {"outputs": [{"name": "y", "datatype": "FP8", "data": np.arange(2)}]},
        {"outputs": [{"name": "y", "data": object()}]},
        np.zeros(1, np.complex64),
        object(),
    ],
)
def test_what_cannot_be_expressed(result: Any) -> None:
    """A result that is no tensor and no JSON fails as the handler's fault."""
    with pytest.raises((TypeError, ValueError)):
        outputs(result)


def test_binary_answer_for_the_public_client() -> None:
    """``tritonclient`` reads a binary answer, with outputs of both kinds in it."""
    wanted = request(
        outputs=[
            {"name": "x", "parameters": {"binary_data": True}},
            {"name": "words", "parameters": {"binary_data": True}},
            {"name": "half", "parameters": {"binary_data": True}},
            {"name": "plain"},
        ]
    )
    result = {
        "x": np.arange(6, dtype=np.int16).reshape(2, 3),
        "words": ["one", b"\xff"],
        "plain": [1.5],
        "half": np.array([2.5], np.float16),
    }
    raw, headers = OipExchange(wanted, "m", "1").render(result)
    length = int(dict(headers)[b"inference-header-content-length"])
    assert dict(headers)[b"content-type"] == b"application/octet-stream"
    found = InferResult.from_response_body(raw, header_length=length)
    assert found.as_numpy("x").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.as_numpy("words").tolist() == [b"one", b"\xff"]
    assert found.as_numpy("half").tolist() == [2.5]
    assert found.as_numpy("plain").tolist() == [1.5]


def test_bytes_that_are_no_text() -> None:
    """Bytes that JSON cannot hold are the caller's to ask for in binary."""
    with pytest.raises(MalformedInput, match="as binary data"):
        outputs(b"\xff")


def test_all_outputs_in_binary() -> None:
    """``binary_data_output`` holds for every output that is not named."""
    exchange = OipExchange(request(parameters={"binary_data_output": True}), "m", "1")
    raw, headers = exchange.render(np.arange(2, dtype=np.int32))
    length = int(dict(headers)[b"inference-header-content-length"])
    assert raw[length:] == np.arange(2, dtype="<i4").tobytes()
    (found,) = msgspec.json.decode(raw[:length])["outputs"]
    assert found["parameters"] == {"binary_data_size": 8}

"""What the frontend refuses, and what it leaves to the worker."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve.direct.gate import InputGate
from cloister.serve.frames import Headers
from cloister.serve.oip.marks import mark
from tests.serve.direct.doubler import SCHEMA

JSON: Headers = [(b"content-type", b"application/json")]
OIP: Headers = [*JSON, *mark("m", "1.0")]
GATE = InputGate(SCHEMA, most_bytes=512)


def oip(shape: Any = (1, 2), datatype: str = "FP32", name: str = "x", **more: Any) -> bytes:
    return json.dumps(
        {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": [1, 2], **more}]}
    ).encode()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, b"[[1,2,3]]"),
        (JSON, b'{"x": "text"}'),
        (OIP, oip((1, 3))),
        (OIP, oip(datatype="INT64")),
        (OIP, oip(name="z")),
        (OIP, oip((2,))),
    ],
)
def test_wrong_inputs_stop_here(headers: Headers, body: bytes) -> None:
    """Wrong shapes, types and names are refused with the model's own."""
    with pytest.raises(MalformedInput, match=r"expected x FP32\[-1,2\]$"):
        GATE.check(headers, body)


def test_the_head_of_a_binary_request_is_enough() -> None:
    """Only its JSON part is looked at, however long the tensors behind it are."""
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[9,3],"parameters":{"binary_data_size":108}}]}'
    headers = [(b"inference-header-content-length", str(len(head)).encode()), *OIP]
    with pytest.raises(MalformedInput, match=r"found x FP32\[9,3\]"):
        GATE.check(headers, head + bytes(100_000))


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, b"[[1,2]]"),
        (JSON, b"[[1,2"),
        (JSON, json.dumps([[0.123456789, 1.0, 2.0]] * 40).encode()),
        ([(b"content-type", b"image/jpeg")], b"[[1,2,3]]"),
        ([*JSON, (b"explain", b"True")], b"[[1,2,3]]"),
        ([*JSON, (b"describe", b"True")], b""),
        (OIP, oip((-1, 3))),
        (OIP, oip((1, 2), data=[0.123456789] * 100)),
        (OIP, b"{"),
        ([(b"inference-header-content-length", b"x"), *OIP], oip((1, 3))),
        ([(b"inference-header-content-length", b"9999"), *OIP], oip((1, 3))),
    ],
)
def test_the_rest_goes_on(headers: Headers, body: bytes) -> None:
    """What is right, too long, no JSON, or not an inference is the worker's business."""
    GATE.check(headers, body)


@pytest.mark.parametrize("opening", ['{"inputs":', "["])
def test_deep_documents_are_refused_or_left(opening: str) -> None:
    """However deep: a frontend that recursed with its caller's document would end with it."""
    gate = InputGate(SCHEMA, most_bytes=1 << 14)
    for depth in range(900, 1100):
        body = opening * depth + "1" + ("]" if opening == "[" else "}") * depth
        with contextlib.suppress(MalformedInput):
            gate.check(JSON, body.encode())


def test_pictures_as_text_go_on() -> None:
    """A model that takes pictures takes them as base64 in JSON too."""
    gate = InputGate(SCHEMA, most_bytes=512, pictures=True)
    for document in ("aGVsbG8=", {"b64": "aGVsbG8="}, {"instances": [{"b64": "aGVsbG8="}]}):
        gate.check(JSON, json.dumps(document).encode())
    with pytest.raises(MalformedInput):
        gate.check(JSON, b"[[1,2,3]]")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.sampled_from([JSON, OIP]))
def test_no_body_breaks_it(body: bytes, headers: Headers) -> None:
    """Whatever the bytes are, they go on or are refused."""
    with contextlib.suppress(MalformedInput):
        GATE.check(headers, body)

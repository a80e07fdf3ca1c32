"""Python values as request bodies."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.client.payload import NPY_TYPE, encode_payload
from cloister.errors import ConfigError, MalformedInput

JSON = "application/json"


@pytest.mark.parametrize(
    ("data", "content", "kind"),
    [
        (b"\x00\x01", b"\x00\x01", "application/octet-stream"),
        (bytearray(b"ab"), b"ab", "application/octet-stream"),
        ("é", "é".encode(), "text/plain; charset=utf-8"),
        ({"a": [1, 2.5, None]}, b'{"a":[1,2.5,null]}', JSON),
        ([1, 2], b"[1,2]", JSON),
        (3, b"3", JSON),
        (np.arange(4, dtype=np.uint8).reshape(2, 2), b"[[0,1],[2,3]]", JSON),
        ({"x": np.float32(0.5), "y": np.array([1, 2])}, b'{"x":0.5,"y":[1,2]}', JSON),
    ],
)
def test_forms(data: Any, content: bytes, kind: str) -> None:
    """Each kind of value has one form and one content type."""
    assert encode_payload(data) == (content, kind)


def test_the_callers_content_type_wins() -> None:
    """A content type that the caller names is kept."""
    assert encode_payload(b"x", "image/png") == (b"x", "image/png")
    assert encode_payload({"a": 1}, "application/vnd.x+json")[1] == "application/vnd.x+json"


def test_files(tmp_path: Path) -> None:
    """A path is read, and its type guessed by its name."""
    for name, kind in (
        ("cat.jpg", "image/jpeg"),
        ("x.json", JSON),
        ("x.unknown-kind", "application/octet-stream"),
    ):
        (tmp_path / name).write_bytes(b"data")
        assert encode_payload(tmp_path / name) == (b"data", kind)
    with pytest.raises(ConfigError, match="cannot read"):
        encode_payload(tmp_path / "missing")


def test_npy() -> None:
    """With its content type an array goes as a .npy file; objects, which need pickle, do not."""
    array = np.random.default_rng(1).random((3, 4))
    content, kind = encode_payload(array, NPY_TYPE)
    assert kind == NPY_TYPE
    assert np.array_equal(np.load(io.BytesIO(content), allow_pickle=False), array)
    with pytest.raises(MalformedInput, match="pickle"):
        encode_payload(np.array([object()]), NPY_TYPE)


@pytest.mark.parametrize("data", [{1, 2}, {"a": object()}, float("nan"), {"secret-canary": b"x"}])
def test_what_has_no_form(data: Any) -> None:
    """A value without a form is refused, and not quoted."""
    with pytest.raises(MalformedInput) as caught:
        encode_payload(data)
    assert "canary" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(json_values, max_size=3))
def test_json_round_trip(value: list[Any]) -> None:
    """JSON values arrive as they were."""
    assert json.loads(encode_payload(value)[0]) == value

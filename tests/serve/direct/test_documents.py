"""JSON documents as a model's inputs."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engines.schema import ModelSchema, TensorSpec
from cloister.errors import MalformedInput
from cloister.serve.direct.documents import check_columns, read_columns
from tests.serve.direct.doubler import SCHEMA

TWO = ModelSchema((TensorSpec("ids", "INT64", (-1, 3)), TensorSpec("flag", "BOOL", (-1,))), ())
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "ids", "flag", "instances", "inputs"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("schema", "document"),
    [
        (SCHEMA, [[1, 2.5]]),
        (SCHEMA, [1, 2.5]),
        (SCHEMA, {"x": [[1, 2], [3, 4]]}),
        (SCHEMA, {"inputs": {"x": [[1, 2]]}}),
        (SCHEMA, {"inputs": [[1, 2]]}),
        (SCHEMA, {"instances": [[1, 2], [3, 4]]}),
        (SCHEMA, {"instances": [{"x": [1, 2]}]}),
        (TWO, {"ids": [[1, 2, 3.0]], "flag": [True]}),
        (TWO, {"instances": [{"ids": [1, 2, 3], "flag": False}]}),
    ],
)
def test_each_form_is_read(schema: ModelSchema, document: Any) -> None:
    """By name, as the only input, in columns or in rows; with the dimension of rows or without."""
    check_columns(read_columns(document, schema), schema)


@pytest.mark.parametrize(
    ("schema", "document", "reason"),
    [
        (SCHEMA, {"y": [[1, 2]]}, "no JSON of the model's inputs"),
        (SCHEMA, {"x": [[1, 2]], "y": 1}, "the model has not"),
        (SCHEMA, [[1, 2, 3]], r"found x FP32\[1,3\]"),
        (SCHEMA, [[1, "2"]], "elements that are not FP32"),
        (SCHEMA, [[1, True]], "elements that are not FP32"),
        (SCHEMA, [[1, 2], [3]], "not a regular array"),
        (SCHEMA, [], r"found x FP32\[1,0\]"),
        (SCHEMA, 7, "no JSON of the model's inputs"),
        (SCHEMA, {"instances": []}, "not a list of rows"),
        (SCHEMA, {"instances": [1, 2]}, r"found x FP32\[2\]"),
        (SCHEMA, {"instances": [{"z": [1, 2]}]}, "a row of instances has other inputs"),
        (TWO, {"ids": [[1, 2, 3]]}, "'flag' is missing"),
        (TWO, {"ids": [[1, 2, 3.5]], "flag": [True]}, "elements that are not INT64"),
        (TWO, {"ids": [[1, 2, 3]], "flag": ["yes"]}, "elements that are not BOOL"),
        (TWO, {"ids": [[1, 2, 3]], "flag": [True, False]}, "different numbers of rows"),
        (TWO, {"instances": [[1, 2, 3]]}, "no objects by name"),
        (TWO, [[1, 2, 3]], "no JSON of the model's inputs"),
    ],
)
def test_all_else_is_refused(schema: ModelSchema, document: Any, reason: str) -> None:
    """With what was wrong; where it is about the model's inputs, with what these are."""
    with pytest.raises(MalformedInput, match=reason):
        check_columns(read_columns(document, schema), schema)


@given(plain, st.sampled_from([SCHEMA, TWO]))
def test_no_document_breaks_it(document: Any, schema: ModelSchema) -> None:
    """Whatever it is, it is read or refused."""
    with contextlib.suppress(MalformedInput):
        check_columns(read_columns(document, schema), schema)

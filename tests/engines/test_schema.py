"""Schemas: what they admit, what they say when they do not, and that no document breaks their parser."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engines.schema import ModelSchema, Place, SharedSize, TensorSpec, parse_schema
from cloister.errors import MalformedInput

SCHEMA = ModelSchema(
    (TensorSpec("ids", "INT64", (-1, 128)), TensorSpec("mask", "INT64", (-1, 128))),
    (TensorSpec("logits", "FP32", (-1, 2)),),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["inputs", "outputs", "name", "datatype", "shape"]), inner)
    ),
    max_leaves=20,
)


def ids(rows: int = 2, length: int = 128, dtype: str = "int64") -> np.ndarray:
    return np.zeros((rows, length), dtype)


def test_inputs_of_the_model_pass() -> None:
    """Any number of rows is taken where the first size is open, and is what ``check`` returns."""
    assert SCHEMA.check({"ids": ids(3), "mask": ids(3)}) == 3


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"ids": ids()}, "'mask' is missing"),
        ({"ids": ids(), "mask": ids(), "more": ids()}, "the model has not"),
        ({"ids": ids(dtype="int32"), "mask": ids()}, r"found ids INT32\[2,128\]"),
        ({"ids": ids(length=64), "mask": ids()}, r"found ids INT64\[2,64\]"),
        ({"ids": ids()[0], "mask": ids()}, r"found ids INT64\[128\]"),
        ({"ids": ids(3), "mask": ids(2)}, "different numbers of rows"),
        ({"ids": ids(0), "mask": ids(0)}, "no rows"),
        ({"ids": ids(dtype="complex64"), "mask": ids()}, "of a type that no tensor has"),
    ],
)
def test_other_inputs_are_refused_with_what_was_expected(inputs: dict[str, Any], reason: str) -> None:
    """Each way to be wrong is named, and the whole expectation stands behind it."""
    with pytest.raises(MalformedInput, match=reason) as refused:
        SCHEMA.check(inputs)
    assert refused.value.message.endswith("expected ids INT64[-1,128], mask INT64[-1,128]")


@pytest.mark.parametrize("shape", [(1 << 40, 0), (1, 0)])
def test_rows_of_nothing_are_refused(shape: tuple[int, ...]) -> None:
    """A million million rows without an element are no bytes, until the model makes something of each."""
    schema = ModelSchema((TensorSpec("ids", "INT64", (-1, -1)),), ())
    with pytest.raises(MalformedInput, match="no elements"):
        schema.check({"ids": np.zeros(shape, np.int64)})


def test_bfloat16_may_come_as_float32() -> None:
    """numpy has no bfloat16, and float32 holds each of its values."""
    schema = ModelSchema((TensorSpec("x", "BF16", (-1, 2)),), ())
    assert schema.check({"x": np.zeros((4, 2), np.float32)}) == 4


def test_the_only_input_needs_no_name() -> None:
    """Where there are two, a name is asked for."""
    one = ModelSchema((TensorSpec("x", "FP32", (1,)),), ())
    assert one.input().name == "x"
    with pytest.raises(MalformedInput, match="name of the input is missing"):
        SCHEMA.input()
    with pytest.raises(MalformedInput, match="no input 'y'"):
        one.input("y")


def test_a_schema_survives_its_document() -> None:
    """What is written as JSON is read as the same schema."""
    import msgspec

    assert parse_schema(json.loads(msgspec.json.encode(SCHEMA))) == SCHEMA


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [], "outputs": []},
        {"inputs": [{"name": "", "datatype": "FP32", "shape": [1]}], "outputs": []},
        {"inputs": [{"name": "x", "datatype": "FLOAT", "shape": [1]}], "outputs": []},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}], "outputs": []},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1] * 33}], "outputs": []},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}] * 2, "outputs": []},
        {"inputs": [{"name": "x\n", "datatype": "FP32", "shape": [1]}], "outputs": []},
    ],
)
def test_what_is_no_schema_is_refused(document: Any) -> None:
    """Names, datatypes, sizes and their numbers are all bounded."""
    with pytest.raises(MalformedInput):
        parse_schema(document)


@given(plain)
def test_no_document_breaks_the_parser(document: Any) -> None:
    """Whatever it is, it is a schema or refused."""
    with contextlib.suppress(MalformedInput):
        assert parse_schema(document).inputs


TIED = ModelSchema(
    (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))),
    (),
    (SharedSize((Place("ids", 1), Place("mask", 1)), least=2, most=16),),
)


@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ((64, 2), r"ids\[1\] of 64 and mask\[1\] of 2, which are one size"),
        ((17, 17), "which is at most 16"),
        ((1, 1), "which is at least 2"),
    ],
)
def test_open_sizes_that_belong_together_are_the_same(lengths: tuple[int, int], reason: str) -> None:
    """A model that takes two sizes for one is not given others, nor what is out of its bounds."""
    assert TIED.check({"ids": ids(3, 16), "mask": ids(3, 16)}) == 3
    with pytest.raises(MalformedInput, match=reason):
        TIED.check({"ids": ids(3, lengths[0]), "mask": ids(3, lengths[1])})


@pytest.mark.parametrize("place", [{"input": "ids", "axis": 2}, {"input": "more", "axis": 0}])
def test_sizes_of_no_input_are_refused(place: dict[str, Any]) -> None:
    """A schema that names a dimension that is not there would fail at the first request."""
    document = json.loads(msgspec.json.encode(TIED))
    assert parse_schema(document) == TIED
    document["sizes"][0]["places"].append(place)
    with pytest.raises(MalformedInput, match="no input has"):
        parse_schema(document)

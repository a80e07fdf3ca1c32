"""The sections ``engine``, ``input`` and ``output`` of a model's settings."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engines.spec import parse_spec
from cloister.errors import MalformedInput

ENGINE = {"kind": "openvino", "file": "model.xml"}
words = st.sampled_from(
    ["engine", "input", "output", "image", "top", "kind", "file", "crop", "mean", "labels", "schema", "rows"]
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)


def test_a_model_with_a_handler_has_none() -> None:
    """Settings without ``engine`` are those of a handler, whatever else they say."""
    assert parse_spec({"minWorkers": 2, "input": "the handler's own"}) is None


def test_all_of_it_is_read() -> None:
    """Every section arrives, with its defaults."""
    spec = parse_spec(
        {
            "engine": {**ENGINE, "precision": "bf16", "streams": 2},
            "input": {"image": {"resize": 256, "crop": [224, 192], "mean": [0.5], "std": [0.25]}},
            "output": {"top": {"labels": "index_to_name.json"}},
            "minWorkers": 1,
        }
    )
    assert spec is not None
    assert (spec.engine.precision, spec.engine.streams, spec.engine.threads) == ("bf16", 2, 0)
    assert spec.input.image is not None
    assert spec.input.image.crop == (224, 192)
    assert spec.output.top is not None
    assert spec.output.top.count == 5


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": None},
        {"engine": {"kind": "openvino"}},
        {"engine": {**ENGINE, "file": "../model.xml"}},
        {"engine": {**ENGINE, "file": "/model.xml"}},
        {"engine": {**ENGINE, "file": ""}},
        {"engine": {**ENGINE, "entry": "../net.py:Net"}},
        {"engine": {**ENGINE, "precision": "int4"}},
        {"engine": {**ENGINE, "threads": -1}},
        {"engine": {**ENGINE, "stream": 2}},
        {"engine": ENGINE, "input": {"image": {"crop": 0}}},
        {"engine": ENGINE, "input": {"image": {"std": [0.1, 0, 0.1]}}},
        {"engine": ENGINE, "input": {"image": {"scale": 0}}},
        {"engine": ENGINE, "input": {"image": {"layout": "chwn"}}},
        {"engine": ENGINE, "output": {"top": {"labels": "/etc/passwd"}}},
        {"engine": ENGINE, "output": {"top": {"count": 0}}},
        {"engine": {**ENGINE, "schema": {"inputs": [], "outputs": []}}},
    ],
)
def test_what_is_not_of_the_form_is_refused(settings: dict[str, Any]) -> None:
    """A word that is unknown, a number out of bounds or a file outside of the archive is an error."""
    with pytest.raises(MalformedInput):
        parse_spec(settings)


@given(st.dictionaries(words, plain, max_size=4))
def test_no_settings_break_the_parser(settings: dict[str, Any]) -> None:
    """Whatever they are, they are read or refused."""
    with contextlib.suppress(MalformedInput):
        parse_spec(settings)

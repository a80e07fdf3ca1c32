"""What an archive says of itself is small, plain and stays inside it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve import manifest
from cloister.serve.manifest import check_name, parse_manifest, parse_settings


def test_manifest_names() -> None:
    """TorchServe's names are read, others left alone, and null is as good as absent."""
    raw = (
        b'{"runtime": "python3", "x": 1, "model": {"modelName": "m", "handler": "h.py:f", "modelFile": null}}'
    )
    found = parse_manifest(b"\xef\xbb\xbf" + raw)
    assert (found.runtime, found.model.model_name, found.model.handler) == ("python3", "m", "h.py:f")
    assert found.model.model_file == ""


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b'{"model": 1}',
        b'{"model": {"handler": "../x.py"}}',
        b'{"model": {"configFile": "/etc/x"}}',
        b'{"runtime": "ruby"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_bad_manifest(raw: bytes) -> None:
    """A manifest that is not one, names a file outside or a runtime that does not exist, is malformed."""
    with pytest.raises(MalformedInput):
        parse_manifest(raw)


def test_settings_are_plain_values() -> None:
    found = parse_settings(b"minWorkers: 2\nhandler: {k: [1, a]}")
    assert found == {"minWorkers": 2, "handler": {"k": [1, "a"]}}
    assert parse_settings(b"minWorkers: 2\nhandler: {k: [1, a]}") == {
        "minWorkers": 2,
        "handler": {"k": [1, "a"]},
    }
    assert parse_settings(b"") == {}


@pytest.mark.parametrize(
    "raw",
    [
        b"!!python/object/apply:os.system [id]",
        b"a: !!python/name:os.system",
        b"- a list",
        b"text",
        b"a: [",
        b"\xff\xfe\x00",
        b"? {a: b}\n: c",
        b"a: &x [*x]",
        b"[" * 5000,
        b"x: " + b"1" * manifest.MAX_SETTINGS_BYTES,
    ],
)
def test_bad_settings(raw: bytes) -> None:
    """YAML that makes objects, is no mapping, refers to itself, or is too long or deep, is malformed."""
    with pytest.raises(MalformedInput):
        parse_settings(raw)


def test_aliases_cannot_multiply() -> None:
    """Nine lines that stand for a billion values are refused."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(MalformedInput, match="aliases"):
        parse_settings("\n".join(lines).encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120) | st.text("[]{}:,-&*!? \n\"'ab01", max_size=120).map(str.encode))
def test_only_malformed_input_escapes(raw: bytes) -> None:
    """Whatever the bytes are, the parsers give a value or MalformedInput."""
    for parse in (parse_manifest, parse_settings):
        with contextlib.suppress(MalformedInput):
            parse(raw)


@given(st.text(max_size=40))
def test_names_stay_inside(name: str) -> None:
    """A name that passes has no way up and no root."""
    with contextlib.suppress(MalformedInput):
        path = check_name(name)
        assert not path.is_absolute()
        assert ".." not in path.parts

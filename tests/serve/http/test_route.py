"""Paths and queries as TorchServe reads them."""

from __future__ import annotations

import pytest

from cloister.errors import MalformedInput
from cloister.serve.http.route import is_true, read_list, read_query, split_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", []), ("//", []), ("/a", ["a"]), ("/a/b/", ["a", "b"]), ("/a//b", ["a", "", "b"]), ("", [])],
)
def test_segments(path: str, expected: list[str]) -> None:
    """Empty segments count, except at the end, as in Java."""
    assert split_path(path) == expected


def test_queries() -> None:
    """The first value of a parameter counts; a list has them all; UTF-8 is decoded."""
    query = b"a=1&a=2&b=&c=x%20y&d=%C3%A9"
    assert read_query(query) == {"a": "1", "b": "", "c": "x y", "d": "é"}
    assert read_list(query, "a") == ["1", "2"]
    assert read_query(b"") == {}
    with pytest.raises(MalformedInput):
        read_query(b"&".join([b"a=1"] * 65))


def test_booleans() -> None:
    """True is ``true`` in any case, and nothing else."""
    assert [is_true(text) for text in ("true", "TRUE", "1", "yes", "", None)] == [True, True] + [False] * 4

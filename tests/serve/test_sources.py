"""Which models a server loads."""

from __future__ import annotations

import itertools

import pytest

from cloister.errors import ConfigError
from cloister.serve.sources import Wanted, parse_wanted, pick, version_order

HAVE = [("a", "1.9"), ("a", "1.10"), ("b", "1")]


def test_versions_in_order() -> None:
    """Numbers count as numbers, and a release comes after its candidates."""
    ordered = ["0.9", "1.0-rc", "1.0", "1.0.1", "1.9", "1.10", "2"]
    assert sorted(ordered, key=version_order)[0] == "0.9"
    for before, after in itertools.pairwise(["0.9", "1.0", "1.0.1", "1.9", "1.10", "2"]):
        assert version_order(before) < version_order(after)


@pytest.mark.parametrize(
    ("entries", "picked"),
    [
        ((), [("a", "1.10"), ("b", "1")]),
        (("a",), [("a", "1.10")]),
        (("a=1.9", "a"), [("a", "1.9"), ("a", "1.10")]),
    ],
)
def test_pick(entries: tuple[str, ...], picked: list[tuple[str, str]]) -> None:
    """Nothing named means the newest of all; a name means its newest; a version means that one."""
    assert pick(HAVE, parse_wanted(entries), where="x") == picked


@pytest.mark.parametrize("want", [Wanted("c", None), Wanted("a", "3")])
def test_wanted_but_absent(want: Wanted) -> None:
    """A model or version that is not there stops the start."""
    with pytest.raises(ConfigError, match="is not in"):
        pick(HAVE, [want], where="x")


@pytest.mark.parametrize("entry", ["", "=1", "a=", "a/b", "../a", "a b", "a=1/2"])
def test_bad_entries(entry: str) -> None:
    """An entry that cannot be a model is a configuration error."""
    with pytest.raises(ConfigError):
        parse_wanted([entry])

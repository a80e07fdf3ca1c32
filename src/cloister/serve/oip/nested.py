"""Nested lists of JSON as one flat list. Imports no array library: the frontend looks at them too."""

from __future__ import annotations

from itertools import chain
from typing import Any

from cloister.errors import MalformedInput

MAX_DIMENSIONS = 32


def flatten(data: Any) -> tuple[list[Any], list[int]]:
    """All elements of nested lists in row-major order, and the lists' lengths by depth.

    Raises:
        MalformedInput: lists of different lengths beside each other, or too deep.
    """
    flat = list(data) if isinstance(data, list | tuple) else [data]
    lengths = [len(flat)]
    while flat and isinstance(flat[0], list | tuple):
        if len(lengths) == MAX_DIMENSIONS:
            raise MalformedInput("data is nested too deeply")
        if not set(map(type, flat)) <= {list, tuple} or len(set(map(len, flat))) != 1:
            raise MalformedInput("data is not a regular array")
        lengths.append(len(flat[0]))
        flat = list(chain.from_iterable(flat))
    return flat, lengths

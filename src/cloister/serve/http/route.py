"""Paths and queries as TorchServe reads them."""

from __future__ import annotations

from urllib.parse import parse_qsl

from cloister.errors import MalformedInput

MAX_FIELDS = 64


def split_path(path: str) -> list[str]:
    """Segments after the first slash. As in Java, empty ones at the end do not count: ``/a/b/`` has two."""
    segments = path.split("/")
    while segments and not segments[-1]:
        segments.pop()
    return segments[1:]


def read_query(query: bytes) -> dict[str, str]:
    """The first value of each parameter.

    Raises:
        MalformedInput: more than ``MAX_FIELDS`` parameters.
    """
    found: dict[str, str] = {}
    for name, value in _pairs(query):
        found.setdefault(name, value)
    return found


def read_list(query: bytes, name: str) -> list[str]:
    """Every value of one parameter.

    Raises:
        MalformedInput: more than ``MAX_FIELDS`` parameters.
    """
    return [value for key, value in _pairs(query) if key == name]


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        text = query.decode("latin-1")
        return parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise MalformedInput("the query has too many parameters") from error


def is_true(text: str | None) -> bool:
    """Java's Boolean.parseBoolean."""
    return text is not None and text.lower() == "true"

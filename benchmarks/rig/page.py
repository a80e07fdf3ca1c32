"""Tables in Markdown, and their place in a page: between two marks, which are all that a script replaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def render_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def replace_section(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the marks of ``name``, and nothing else changed.

    Raises:
        ValueError: the page does not have the two marks once each, in order.
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(first) != 1 or page.count(last) != 1 or page.index(first) > page.index(last):
        raise ValueError(f"the page needs {first} and {last} once each, in this order")
    before, rest = page.split(first)
    after = rest.split(last)[1]
    return f"{before}{first}\n{text.strip()}\n{last}{after}"


def write_section(path: Path, name: str, text: str) -> None:
    """Replace one section of a file."""
    path.write_text(replace_section(path.read_text(), name, text))

"""Query parts of a provider's URI, and secrets that a URI names by file, never by value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from cloister.errors import ConfigError
from cloister.kbs.owner_files import read_private


def parse_pairs(text: str, separator: str, known: tuple[str, ...], what: str) -> dict[str, str]:
    """``a=1&b=2`` as a mapping of percent-decoded values.

    Raises:
        ConfigError: an unknown or repeated name, or a part without ``=``.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in pairs:
            raise ConfigError(f"{what}: cannot use {name[:40]!r}", hint=f"known: {', '.join(known)}")
        pairs[name] = unquote(value)
    return pairs


def secret_file(pairs: Mapping[str, str], name: str) -> str | None:
    """The first line of the owner-only file that ``name`` gives; None if it gives none.

    Raises:
        ConfigError: unreadable, readable by others, or empty.
    """
    if name not in pairs:
        return None
    path = Path(pairs[name].removeprefix("file:").removeprefix("//"))
    try:
        text = read_private(path).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text") from error
    if not text:
        raise ConfigError(f"{path} is empty")
    return text

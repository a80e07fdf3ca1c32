"""Whether an unpacked archive is served by an engine. Loads no array library: every worker asks."""

from __future__ import annotations

from pathlib import Path

from cloister.engines.spec import ServedSpec, parse_spec
from cloister.serve.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_SETTINGS_BYTES,
    parse_manifest,
    parse_settings,
)


def read_spec(folder: Path) -> ServedSpec | None:
    """What an unpacked archive says of its engine; None if it has a handler.

    Raises:
        MalformedInput: its settings are not what they should be.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    with path.open("rb") as file:
        model = parse_manifest(file.read(MAX_MANIFEST_BYTES)).model
    if model.handler or not model.config_file:
        return None
    with (folder / model.config_file).open("rb") as file:
        return parse_spec(parse_settings(file.read(MAX_SETTINGS_BYTES + 1)))

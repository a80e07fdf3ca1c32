"""What an archive says of itself: ``MAR-INF/MANIFEST.json`` and the model's YAML settings.

Both come from a model's owner and are read by the frontend, so both are small, bounded and without any way
to name a class or a file outside of the archive.

Source: pytorch/serve 0.12, model-archiver/README.md, section "Artifact Details"; frontend/archive Manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec
import yaml

from cloister.errors import MalformedInput

MANIFEST_NAME = "MAR-INF/MANIFEST.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_SETTINGS_BYTES = 1 << 18
MAX_SETTINGS_VALUES = 20_000
"""Values of a YAML document counted as often as an alias repeats them: a few lines can stand for billions."""
MAX_SETTINGS_DEPTH = 32
MAX_NAME_BYTES = 1024
PACKAGES_FOLDER = "python-packages"
"""Packages installed for this model alone, inside its folder; on the import path of its workers."""
RUNTIMES = ("python", "python3", "LSP")


class ManifestModel(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The ``model`` object of a manifest. Unknown names are left alone: other tools add their own."""

    model_name: str = ""
    model_version: str = ""
    handler: str = ""
    serialized_file: str = ""
    model_file: str = ""
    config_file: str = ""
    requirements_file: str = ""
    envelope: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What Cloister reads of ``MANIFEST.json``."""

    runtime: str = "python"
    model: ManifestModel = ManifestModel()


def parse_manifest(raw: bytes) -> Manifest:
    """Parse ``MANIFEST.json``.

    Raises:
        MalformedInput: not JSON, a value of the wrong type, a runtime that does not exist, or a file name
            that leaves the archive.
    """
    try:
        document = msgspec.json.decode(raw.removeprefix(b"\xef\xbb\xbf"))
        manifest = msgspec.convert(_without_nulls(document), Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedInput(f"{MANIFEST_NAME} is not a manifest") from error
    if manifest.runtime not in RUNTIMES:
        raise MalformedInput("Runtime is not defined or invalid.")
    model = manifest.model
    named = (model.serialized_file, model.model_file, model.config_file, model.requirements_file)
    for name in (*named, model.handler.partition(":")[0]):
        if name:
            check_name(name)
    return manifest


def check_name(name: str) -> PurePosixPath:
    """A member's name as a path that stays inside its archive.

    Raises:
        MalformedInput: absolute, upwards, empty, too long, or with a control character or backslash.
    """
    path = PurePosixPath(name)
    forbidden = any(ord(c) < 32 or c in "\\\x7f" for c in name)
    if forbidden or not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise MalformedInput("archive has a member with a forbidden name")
    if path.is_absolute() or ".." in path.parts or (path == PurePosixPath(".") and not name.endswith("/")):
        raise MalformedInput("archive has a member outside of its folder")
    return path


def parse_settings(raw: bytes) -> dict[str, Any]:
    """The model's YAML settings (``configFile``): plain values only, no object of any class.

    Raises:
        MalformedInput: not YAML, not one mapping, too long, too deep, or aliases that multiply.
    """
    if len(raw) > MAX_SETTINGS_BYTES:
        raise MalformedInput(f"model settings have {len(raw)} bytes, limit is {MAX_SETTINGS_BYTES}")
    try:
        document = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError, OverflowError) as error:
        raise MalformedInput("model settings are not YAML") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise MalformedInput("model settings are not one mapping")
    _check_size(document)
    return document


def _check_size(document: Any) -> None:
    waiting: list[tuple[Any, int]] = [(document, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MAX_SETTINGS_VALUES or depth > MAX_SETTINGS_DEPTH:
            raise MalformedInput("model settings are too deep, or aliases make them too large")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str | int | float | bool) for key in value):
                raise MalformedInput("model settings have a key that is not a plain value")
            waiting.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list | set | tuple):
            waiting.extend((item, depth + 1) for item in value)


def _without_nulls(document: Any) -> Any:
    """TorchServe takes null for a value that is not there."""
    if isinstance(document, dict):
        return {key: _without_nulls(value) for key, value in document.items() if value is not None}
    return document

"""Where settings come from: the four layers, merged; and the digest of what came out."""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

import msgspec
import rfc8785

from cloister.errors import ConfigError
from cloister.settings.sections import Settings

ENVIRONMENT_PREFIX = "CLOISTER_"
MAX_PORT = 65_535
MAX_NUMBER = 2**53 - 1
_SECTIONS: dict[str, type[msgspec.Struct]] = {
    field.name: field.type for field in msgspec.structs.fields(Settings)
}


def load_settings(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Merge the four layers into one ``Settings``.

    Args:
        file: TOML file, or None.
        environ: environment; only names that begin with ``CLOISTER_`` are read.
        flags: ``{"section.name": value}``; a value of None means that the flag was not given.
    Raises:
        ConfigError: unreadable file, unknown name, or a value of the wrong type.
    """
    merged: dict[str, dict[str, Any]] = {section: {} for section in Settings.__struct_fields__}
    for layer in (_from_file(file), _from_environment(environ or {}), _from_flags(flags or {})):
        for section, values in layer.items():
            _known(section, merged, "section")
            for name, value in values.items():
                _known(name, _fields_of(section), f"setting in [{section}]")
                merged[section][name] = value
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings: {error}", hint="see `cloister settings --help`") from error
    _check_numbers(settings)
    return settings


def measured_settings(settings: Settings) -> bytes:
    """The effective settings of a server as RFC 8785 canonical JSON: every name of [serve] and [attest]."""
    return rfc8785.dumps(
        {"attest": msgspec.to_builtins(settings.attest), "serve": msgspec.to_builtins(settings.serve)}
    )


def settings_digest(settings: Settings) -> bytes:
    """SHA-384 (48 bytes) of ``measured_settings``: what evidence carries as ``mr_config_id``."""
    return hashlib.sha384(measured_settings(settings)).digest()


def _check_numbers(settings: Settings) -> None:
    """No number is NaN, infinite or negative, and none that RFC 8785 cannot write; ports are ports."""
    for section in settings.__struct_fields__:
        values = getattr(settings, section)
        for field in msgspec.structs.fields(values):
            value = getattr(values, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value == field.default:
                continue
            last = MAX_PORT if field.name == "port" or field.name.endswith("_port") else MAX_NUMBER
            if not 0 <= value <= last:
                raise ConfigError(f"settings: {section}.{field.name} is 0 to {last}, found {value}")


def _from_file(file: Path | None) -> dict[str, dict[str, Any]]:
    if file is None:
        return {}
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {file} is not TOML: {error}") from error
    for section, values in document.items():
        if not isinstance(values, dict):
            raise ConfigError(f"settings file {file}: {section!r} must be a table such as [serve]")
    return document


def _from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    layer: dict[str, dict[str, Any]] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        section, _, name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
        if section not in Settings.__struct_fields__:
            continue  # CLOISTER_VECTORS and the like belong to tools, not to the settings
        value: Any = [part for part in text.split(",") if part] if name in _lists_of(section) else text
        layer.setdefault(section, {})[name] = value
    return layer


def _from_flags(flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    layer: dict[str, dict[str, Any]] = {}
    for dotted, value in flags.items():
        if value is None:
            continue
        section, _, name = dotted.partition(".")
        layer.setdefault(section, {})[name] = value
    return layer


def _fields_of(section: str) -> tuple[str, ...]:
    fields: tuple[str, ...] = _SECTIONS[section].__struct_fields__
    return fields


def _lists_of(section: str) -> frozenset[str]:
    """Settings that hold several values: the environment gives them with commas between."""
    fields = msgspec.structs.fields(_SECTIONS[section])
    return frozenset(field.name for field in fields if get_origin(field.type) is tuple)


def _known(name: str, known: Mapping[str, Any] | tuple[str, ...], what: str) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, list(known), n=1)
    raise ConfigError(f"unknown {what}: {name!r}", hint=f"did you mean {close[0]!r}?" if close else "")

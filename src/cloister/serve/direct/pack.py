"""Make an archive of a bare model file, which an engine serves without a handler.

The model is loaded once, so that what cannot be served is noticed by its owner; its schema goes into the
archive's settings, so that the frontend knows it before any worker does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import yaml

from cloister.engines.convert import convert_model
from cloister.engines.engine import Engine
from cloister.engines.files import ModelFiles
from cloister.engines.spec import SERVED_KEY, ServedSpec, parse_spec
from cloister.engines.table import open_engine
from cloister.errors import ConfigError, MalformedInput
from cloister.serve.direct.inputs import InputReader
from cloister.serve.direct.model import options_of
from cloister.serve.direct.outputs import OutputWriter
from cloister.serve.manifest import MAX_SETTINGS_BYTES, Manifest, parse_settings
from cloister.serve.pack import pack_archive

CONFIG_NAME = "model-config.yaml"


def pack_model(
    target: Path | IO[bytes],
    *,
    name: str,
    version: str,
    model: Path,
    kind: str,
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    extra_files: Sequence[Path] = (),
    archive_format: str = "default",
) -> Manifest:
    """Write an archive of a model file and what belongs to it; returns its manifest.

    Args:
        model: the file that the engine loads. Weights that lie beside it under the same name come with it.
        kind: name of the engine.
        options: of the section ``engine``, besides ``kind`` and ``file``; ``compiled`` compiles here.
        settings: the rest of the model's YAML, such as ``input``, ``output`` and ``minWorkers``.
        extra_files: labels, a module with the network; files, or folders with all that is in them.
    Raises:
        ConfigError: a file is not there, or the engine does not take the model.
        MissingDependencyError: the engine's package is not installed here.
    """
    section = dict(options or {})
    with tempfile.TemporaryDirectory() as folder:
        converted = convert_model(kind, model, Path(folder), compiled=bool(section.pop("compiled", False)))
        model = converted.file
        if converted.schema is not None:
            section["schema"] = msgspec.to_builtins(converted.schema)
        files = [model, *(path for path in companions(model) if path.is_file())]
        document = {**(settings or {}), SERVED_KEY: {**section, "kind": kind, "file": model.name}}
        engine = check_served(read_served(document), [*files, *extra_files])
        document[SERVED_KEY]["schema"] = msgspec.to_builtins(engine.schema)
        engine.close()
        config = Path(folder, CONFIG_NAME)
        config.write_text(yaml.safe_dump(msgspec.to_builtins(document), sort_keys=False))
        return pack_archive(
            target,
            name=name,
            version=version,
            serialized_file=model,
            extra_files=[*files[1:], *extra_files],
            config_file=config,
            archive_format=archive_format,
        )


def companions(model: Path) -> list[Path]:
    """Where weights of a model lie, if they are not in its own file."""
    return [model.with_suffix(".bin")] if model.suffix == ".xml" else [Path(f"{model}.data")]


def read_settings(path: Path | None) -> dict[str, Any]:
    """A model's YAML settings from a file; empty without one.

    Raises:
        ConfigError: they cannot be read.
    """
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            return parse_settings(file.read(MAX_SETTINGS_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except MalformedInput as error:
        raise ConfigError(f"{path}: {error.message}") from error


def read_served(document: Mapping[str, Any]) -> ServedSpec:
    """The engine, input and output of settings that have them.

    Raises:
        ConfigError: they are not of their form.
    """
    try:
        spec = parse_spec(document)
    except MalformedInput as error:
        raise ConfigError(error.message) from error
    if spec is None:
        raise ConfigError("the settings have no section engine, and there is no handler")
    return spec


def files_of(paths: Sequence[Path]) -> ModelFiles:
    """Files, and folders with all that is in them, as an archive holds them.

    Raises:
        ConfigError: one is not there.
    """
    places: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            places.update((name, path / name) for name in ModelFiles.from_folder(path).names())
        elif path.is_file():
            places[path.name] = path
        else:
            raise ConfigError(f"cannot pack {path}: no such file")
    return ModelFiles.from_paths(places)


def check_served(spec: ServedSpec, paths: Sequence[Path]) -> Engine:
    """Load the model as a worker would, with all that its settings name.

    Raises:
        ConfigError: as a worker would.
    """
    files = files_of(paths)
    engine = open_engine(spec.engine.kind, files, spec.engine.file, options_of(spec))
    try:
        InputReader(engine.schema, spec.input)
        OutputWriter(engine.schema, spec.output, files)
    except MalformedInput as error:
        raise ConfigError(error.message) from error
    return engine

"""``cloister archive``: a handler and its weights as one archive, with torch-model-archiver's options."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import Json
from cloister.cli.output import say
from cloister.errors import ConfigError


def archive(
    name: Annotated[str, typer.Option("--model-name", "--name", help="Model name.")],
    model: Annotated[
        Path | None, typer.Argument(help="With --engine: the model's file, or a SavedModel's folder.")
    ] = None,
    handler: Annotated[
        str,
        typer.Option("--handler", help="Python file, FILE:FUNCTION, or the name of a built-in handler."),
    ] = "",
    engine: Annotated[
        str,
        typer.Option(help="Serve MODEL without a handler: torch, openvino, onnxruntime, trees, tensorflow."),
    ] = "",
    precision: Annotated[str, typer.Option(help="With --engine: fp32, bf16 or fp16; else as stored.")] = "",
    threads: Annotated[int, typer.Option(help="With --engine: threads; 0: the worker's cores.", min=0)] = 0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="With --engine torch: compile a .pt2 for this processor.")
    ] = False,
    entry: Annotated[
        str, typer.Option(help="With --engine torch and weights: FILE.py:NAME of what makes the module.")
    ] = "",
    streams: Annotated[
        int, typer.Option(help="With --engine: inferences at a time; 0: its choice.", min=0)
    ] = 0,
    version: Annotated[str, typer.Option("--version", "-v", help="Model version.")] = "1.0",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Archive to write.")] = None,
    export_path: Annotated[
        Path | None,
        typer.Option(help="Folder to write NAME.mar (or .tar.gz) into, instead of --out; here if neither."),
    ] = None,
    archive_format: Annotated[
        str, typer.Option(help="default, zip-store, tgz, or no-archive (a folder).")
    ] = "default",
    serialized_file: Annotated[Path | None, typer.Option(help="Weights.")] = None,
    model_file: Annotated[Path | None, typer.Option(help="Model definition: one class.")] = None,
    extra_files: Annotated[
        list[str] | None,
        typer.Option(
            "--extra-files", "--extra-file", help="Files, folders or patterns, by commas; may be repeated."
        ),
    ] = None,
    requirements_file: Annotated[
        Path | None, typer.Option("--requirements-file", "-r", help="Python packages that it needs.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config-file", "-c", help="YAML settings of the model.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="python, python3 or LSP.")] = "python",
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over an archive of this name.")] = False,
    as_json: Json = False,
) -> None:
    """Pack a model into an archive (.mar): with its handler, for TorchServe too, or for an engine alone."""
    from cloister.serve.pack import SUFFIXES, expand_files, pack_archive
    from cloister.serve.sources import is_model_name

    if not is_model_name(name):
        raise ConfigError(f"no model can be called {name!r}", hint="letters, digits, and then _ - . too")
    if out is not None and export_path is not None:
        raise ConfigError("give either --out or --export-path")
    if archive_format not in SUFFIXES:
        raise ConfigError(f"archive format {archive_format!r} is none of {', '.join(SUFFIXES)}")
    if bool(handler) == bool(engine):
        raise ConfigError("give either --handler, or --engine and the model's file")
    if engine and model is None and serialized_file is None:
        raise ConfigError(
            "--engine needs the model's file", hint="cloister archive --engine openvino model.xml"
        )
    if handler and (model is not None or precision or threads or streams or compiled or entry):
        raise ConfigError("MODEL, --precision, --threads, --streams, --compile and --entry go with --engine")
    target = out or (export_path or Path.cwd()) / f"{name}{SUFFIXES[archive_format]}"
    _make_room(target, force=force or (out is not None and not target.is_dir()))
    extra = expand_files(extra_files or ())
    if engine:
        from cloister.serve.direct.pack import pack_model, read_settings

        source = model or serialized_file
        assert source is not None
        given: dict[str, object] = {
            "precision": precision,
            "threads": threads,
            "streams": streams,
            "entry": entry,
        }
        given["compiled"] = compiled
        settings = read_settings(config_file)
        section = settings.pop("engine", {})
        manifest = pack_model(
            target,
            name=name,
            version=version,
            model=source,
            kind=engine,
            options={**section, **{key: value for key, value in given.items() if value}},
            settings=settings,
            extra_files=[*extra, *([] if model_file is None else [model_file])],
            archive_format=archive_format,
        )
    else:
        manifest = pack_archive(
            target,
            name=name,
            version=version,
            handler=handler,
            serialized_file=serialized_file,
            model_file=model_file,
            extra_files=extra,
            requirements_file=requirements_file,
            config_file=config_file,
            archive_format=archive_format,
            runtime=runtime,
        )
    size = sum(path.stat().st_size for path in _files(target))
    facts = {"archive": str(target), "name": manifest.model.model_name, "version": version, "bytes": size}
    say(facts, f"wrote {target} ({size:,} bytes)", as_json)


def _make_room(target: Path, *, force: bool) -> None:
    """torch-model-archiver keeps what is there; a file named by --out has always been written over."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            return
        if not force:
            raise ConfigError(f"{target} already exists", hint="--force writes over it")
        if target.is_dir():
            if not (target / "MAR-INF").is_dir() and any(target.iterdir()):
                raise ConfigError(f"{target} is a folder that holds no model; it is left as it is")
            shutil.rmtree(target)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from error


def _files(target: Path) -> list[Path]:
    return [path for path in target.rglob("*") if path.is_file()] if target.is_dir() else [target]

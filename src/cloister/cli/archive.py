"""``cloister archive``: a handler and its weights as one archive, with torch-model-archiver's options."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import Json
from cloister.cli.output import console, show_json
from cloister.errors import ConfigError


def archive(
    handler: Annotated[
        str,
        typer.Option("--handler", help="Python file, FILE:FUNCTION, or the name of a built-in handler."),
    ],
    name: Annotated[str, typer.Option("--model-name", "--name", help="Model name.")],
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
    """Pack a handler and its weights into a TorchServe archive (.mar)."""
    from cloister.serve.pack import SUFFIXES, expand_files, pack_archive
    from cloister.serve.sources import is_model_name

    if not is_model_name(name):
        raise ConfigError(f"no model can be called {name!r}", hint="letters, digits, and then _ - . too")
    if out is not None and export_path is not None:
        raise ConfigError("give either --out or --export-path")
    if archive_format not in SUFFIXES:
        raise ConfigError(f"archive format {archive_format!r} is none of {', '.join(SUFFIXES)}")
    target = out or (export_path or Path.cwd()) / f"{name}{SUFFIXES[archive_format]}"
    _make_room(target, force=force or (out is not None and not target.is_dir()))
    manifest = pack_archive(
        target,
        name=name,
        version=version,
        handler=handler,
        serialized_file=serialized_file,
        model_file=model_file,
        extra_files=expand_files(extra_files or ()),
        requirements_file=requirements_file,
        config_file=config_file,
        archive_format=archive_format,
        runtime=runtime,
    )
    size = sum(path.stat().st_size for path in _files(target))
    facts = {"archive": str(target), "name": manifest.model.model_name, "version": version, "bytes": size}
    if as_json:
        show_json(facts)
    else:
        console.print(f"wrote {target} ({size:,} bytes)")


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

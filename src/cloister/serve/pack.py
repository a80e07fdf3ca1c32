"""Make a model archive that TorchServe loads as well, in each of torch-model-archiver's formats.

Source: pytorch/serve 0.12, model-archiver/README.md: formats, names in the manifest, what is left out.
"""

from __future__ import annotations

import glob
import io
import json
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec

from cloister.errors import ConfigError
from cloister.serve.manifest import MANIFEST_NAME, RUNTIMES, Manifest, ManifestModel

SUFFIXES = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}
"""Format to the end of the archive's name."""
BUILT_IN_HANDLERS = (
    "base_handler",
    "image_classifier",
    "image_segmenter",
    "object_detector",
    "text_classifier",
)
_SAMPLE_BYTES = 1 << 18
_WORTH = 0.85
"""A member is deflated only if its start shrinks to less than this; a stored one loads without a copy."""
_LEFT_OUT = frozenset({"__pycache__", "__MACOSX"})


def pack_archive(
    target: Path | IO[bytes],
    *,
    name: str,
    version: str,
    handler: Path | str = "",
    serialized_file: Path | None = None,
    model_file: Path | None = None,
    extra_files: Sequence[Path] = (),
    config_file: Path | None = None,
    requirements_file: Path | None = None,
    archive_format: str = "default",
    runtime: str = "python",
    created: datetime | None = None,
) -> Manifest:
    """Write an archive and return its manifest.

    Args:
        target: the file to write; the folder to make for ``no-archive``.
        handler: a file, a file with ``:function`` after it, or the bare name of a built-in handler; empty
            where the settings name an engine.
        extra_files: files, or folders that are packed with all that is in them.
        archive_format: ``default``, ``zip-store``, ``tgz`` or ``no-archive``.
        created: written into the manifest; now if not given.
    Raises:
        ConfigError: a file that is not there, two files of one name, or an unknown format or runtime.
    """
    writer = _WRITERS.get(archive_format)
    if writer is None:
        raise ConfigError(f"archive format {archive_format!r} is none of {', '.join(SUFFIXES)}")
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime {runtime!r} is none of {', '.join(RUNTIMES)}")
    handler_file, handler_entry = _split_handler(handler)
    named = (handler_file, serialized_file, model_file, config_file, requirements_file)
    entries = _gather([path for path in named if path is not None], extra_files)
    model = ManifestModel(
        model_name=name,
        model_version=version,
        handler=handler_entry,
        serialized_file=serialized_file.name if serialized_file else "",
        model_file=model_file.name if model_file else "",
        config_file=config_file.name if config_file else "",
        requirements_file=requirements_file.name if requirements_file else "",
    )
    manifest = Manifest(runtime=runtime, model=model)
    try:
        writer(target, entries, _document(manifest, created or datetime.now(UTC)), name)
    except OSError as error:
        raise ConfigError(f"cannot pack {error.filename}: {error.strerror}") from error
    return manifest


def expand_files(listed: Iterable[str]) -> list[Path]:
    """torch-model-archiver's ``--extra-files``: comma-separated paths, each of which may be a pattern.

    Raises:
        ConfigError: a path without a pattern that does not exist.
    """
    found: list[Path] = []
    for text in (part.strip() for entry in listed for part in entry.split(",")):
        if not text:
            continue
        matches = sorted(glob.glob(text))  # noqa: PTH207 (an absolute pattern is allowed)
        if not matches and not glob.has_magic(text):
            raise ConfigError(f"File does not exist: {text}")
        found.extend(Path(match) for match in matches)
    return list(dict.fromkeys(found))


def _gather(files: Sequence[Path], extra_files: Sequence[Path]) -> dict[str, Path]:
    entries = {path.name: path for path in files}
    if len(entries) != len({path.absolute() for path in files}):
        raise ConfigError("two files of the archive have the same name")
    for path in extra_files:
        for name, inner in _walk(path):
            if entries.setdefault(name, inner).absolute() != inner.absolute():
                raise ConfigError(f"two files of the archive have the same name: {name}")
    for path in entries.values():
        if not path.is_file():
            raise ConfigError(f"cannot pack {path}: no such file")
    return entries


def _walk(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield path.name, path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("."))
        for name in sorted(files):
            inner = Path(folder, name)
            yield inner.relative_to(path).as_posix(), inner


def _split_handler(handler: Path | str) -> tuple[Path | None, str]:
    text = str(handler)
    if not text:
        return None, ""
    if text in BUILT_IN_HANDLERS:
        return None, text
    file, _, function = text.partition(":") if isinstance(handler, str) else (text, "", "")
    path = Path(file)
    if not path.suffix and not path.is_file():
        path = path.with_suffix(".py")
    if not path.is_file():
        raise ConfigError(
            f"handler {file} is not there", hint=f"a file, or one of {', '.join(BUILT_IN_HANDLERS)}"
        )
    entry = Path(file).name
    return path, f"{entry}:{function}" if function else entry


def _document(manifest: Manifest, created: datetime) -> bytes:
    model = {key: value for key, value in msgspec.to_builtins(manifest.model).items() if value}
    document = {
        "createdOn": created.strftime("%d/%m/%Y %H:%M:%S"),
        "runtime": manifest.runtime,
        "model": model,
        "archiverVersion": "0.12.0",
    }
    return json.dumps(document, indent=2).encode()


def _write_zip(
    target: Path | IO[bytes], entries: Mapping[str, Path], manifest: bytes, *, deflate: bool
) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(MANIFEST_NAME, manifest)
        for name, path in entries.items():
            method = zipfile.ZIP_DEFLATED if deflate and _shrinks(path) else zipfile.ZIP_STORED
            archive.write(path, name, method)


def _write_default(target: Path | IO[bytes], entries: Mapping[str, Path], manifest: bytes, _: str) -> None:
    _write_zip(target, entries, manifest, deflate=True)


def _write_stored(target: Path | IO[bytes], entries: Mapping[str, Path], manifest: bytes, _: str) -> None:
    _write_zip(target, entries, manifest, deflate=False)


def _write_tgz(target: Path | IO[bytes], entries: Mapping[str, Path], manifest: bytes, top: str) -> None:
    file = target.open("wb") if isinstance(target, Path) else target
    try:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            info = tarfile.TarInfo(f"{top}/{MANIFEST_NAME}")
            info.size, info.mode = len(manifest), 0o644
            archive.addfile(info, io.BytesIO(manifest))
            for name, path in entries.items():
                archive.add(path, f"{top}/{name}", recursive=False, filter=_plain)
    finally:
        if isinstance(target, Path):
            file.close()


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the packer's user, and as a file of its own where the packer has a hard link."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.type = tarfile.REGTYPE
    return info


def _write_folder(target: Path | IO[bytes], entries: Mapping[str, Path], manifest: bytes, _: str) -> None:
    if not isinstance(target, Path):
        raise ConfigError("a no-archive model is a folder, and needs a path")
    for name, path in entries.items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (target / MANIFEST_NAME).parent.mkdir(parents=True, exist_ok=True)
    (target / MANIFEST_NAME).write_bytes(manifest)


def _shrinks(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_SAMPLE_BYTES)
    return len(zlib.compress(start, 1)) < _WORTH * len(start)


_WRITERS: dict[str, Callable[[Path | IO[bytes], Mapping[str, Path], bytes, str], None]] = {
    "default": _write_default,
    "zip-store": _write_stored,
    "tgz": _write_tgz,
    "no-archive": _write_folder,
}

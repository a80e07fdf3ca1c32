"""The models that a server starts with: the store's, or TorchServe's ``load_models``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cloister.errors import CloisterError, ConfigError, ModelFailed, WorkerLost
from cloister.serve.control import ModelControl
from cloister.serve.log import log
from cloister.serve.registry import Model
from cloister.serve.sources import ModelSource, version_order

SUFFIXES = (".mar", ".model", ".tar.gz", ".tgz")


async def load_sources(control: ModelControl, sources: Sequence[ModelSource], *, workers: int) -> None:
    """Register models side by side; the newest version of each is its default.

    Raises:
        CloisterError: one of them cannot be served.
    """
    ordered = sorted(sources, key=lambda item: (item.name, item.sequence, version_order(item.version)))
    results = await asyncio.gather(
        *(control.load(source, workers=workers) for source in ordered), return_exceptions=True
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result
    for source in ordered:  # the last of each name is the newest
        control.registry.set_default(source.name, source.version)


async def load_archives(
    control: ModelControl, entries: Sequence[str], folder: Path, *, workers: int, skip_broken: bool
) -> None:
    """Register ``load_models`` of TorchServe, each ``file`` or ``name=file``, or ``all`` of ``folder``.

    They are loaded side by side, and defaults are chosen as if they had come one after the other.

    Args:
        skip_broken: go on without archives that are none, and with models whose workers fail, which are tried
            again until they do not.
    Raises:
        CloisterError: one of them cannot be served, unless broken ones are to be skipped.
    """
    if [entry.lower() for entry in entries] == ["all"]:
        entries = list_archives(folder)
    results = await asyncio.gather(
        *(_load_archive(control, entry, workers, skip_broken=skip_broken) for entry in entries),
        return_exceptions=True,
    )
    chosen: set[str] = set()
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, Model):
            if result.name not in chosen:
                control.registry.set_default(result.name, result.version)
                chosen.add(result.name)
        elif isinstance(result, CloisterError) and skip_broken:
            log.warning("model not loaded", model=entry[:128], reason=result.message)
        else:
            raise result


def list_archives(folder: Path) -> list[str]:
    """What TorchServe's ``all`` loads: archives and folders that are not hidden.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"serve.model_store: {folder} is not a folder")
    return [
        path.name
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and (path.is_dir() or path.name.endswith(SUFFIXES))
    ]


async def _load_archive(control: ModelControl, entry: str, workers: int, *, skip_broken: bool) -> Model:
    name, equals, url = entry.partition("=")
    if not equals:
        name, url = "", entry
    parameters = {"model_name": name} if name else {}
    source = await control.resolve(url, parameters)
    try:
        return await control.load(source, workers=workers, url=url)
    except (ModelFailed, WorkerLost) as error:
        if not skip_broken:
            raise
        log.warning("model has no worker yet", model=entry[:128], reason=error.message)
    source = await control.resolve(source.url, parameters)  # what was at a URL is in the store by now
    return await control.load(source, workers=workers, url=url, in_background=True)

"""The models of a server by name and version."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import ModelNotFound
from cloister.serve.process import WorkerSpec
from cloister.serve.sources import ModelSource, version_order
from cloister.serve.supervisor import Supervisor
from cloister.serve.tmpfs import PrivateFolder, remove_stale
from cloister.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class Model:
    """One loaded version of a model."""

    source: ModelSource
    supervisor: Supervisor

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def version(self) -> str:
        return self.source.version

    @property
    def url(self) -> str:
        return self.source.url

    @property
    def digest(self) -> str:
        return self.source.digest

    @property
    def signer(self) -> str:
        return self.source.signer


def _order(source: ModelSource) -> tuple[str, int, list[tuple[int, int, str]]]:
    return source.name, source.sequence, version_order(source.version)


class Registry:
    """Loaded models, their workers, and the folder in memory that these unpack into."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._models: dict[str, dict[str, Model]] = {}
        self._folders: PrivateFolder | None = None

    def __iter__(self) -> Iterator[Model]:
        for versions in self._models.values():
            yield from versions.values()

    @property
    def healthy(self) -> bool:
        """Whether every model has a worker."""
        return all(model.supervisor.ready for model in self)

    def find(self, name: str, version: str | None = None) -> Model:
        """The model of this name; its newest version if none is given.

        Raises:
            ModelNotFound: no such model, or no such version of it.
        """
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(f"Model not found: {name[:128]}")
        if version is None:
            return next(reversed(versions.values()))
        model = versions.get(version)
        if model is None:
            raise ModelNotFound(f"Model version: {version[:128]} does not exist for model: {name}")
        return model

    async def load(self, sources: Sequence[ModelSource]) -> None:
        """Start a worker for each source, all at the same time; takes over their open files.

        Raises:
            ModelFailed, WorkerLost: one of them could not be made ready; the others are left to ``close``.
            ConfigError: the folder for unpacking cannot be used.
        """
        parent = Path(self._settings.tmpfs)
        remove_stale(parent)
        self._folders = PrivateFolder(parent)
        ordered = sorted(sources, key=_order)
        for source in ordered:
            model = Model(source, self._supervisor(source, self._folders))
            self._models.setdefault(source.name, {})[source.version] = model
        results = await asyncio.gather(*(model.supervisor.start() for model in self), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def close(self, *, drain_s: float) -> None:
        """Stop all workers and remove what they unpacked."""
        await asyncio.gather(*(model.supervisor.stop(drain_s=drain_s) for model in self))
        if self._folders is not None:
            self._folders.close()
        for model in self:
            os.close(model.source.archive_fd)
        self._models.clear()

    def _supervisor(self, source: ModelSource, folders: PrivateFolder) -> Supervisor:
        settings = self._settings
        spec = WorkerSpec(
            name=source.name,
            version=source.version,
            archive_fd=source.archive_fd,
            protected=settings.mode == "protected",
            threads=settings.worker_threads,
        )
        return Supervisor(
            spec,
            folders,
            max_queue=settings.max_queue,
            request_timeout_s=settings.request_timeout_s,
            startup_timeout_s=settings.startup_timeout_s,
        )

"""The models of a server by name and version. They come and go while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cloister.engines.spec import parse_spec
from cloister.errors import ConfigError, ModelNotFound
from cloister.serve.groups import WorkerGroups
from cloister.serve.model_config import ModelConfig
from cloister.serve.placement import Placement
from cloister.serve.refusals import AlreadyRegistered, VersionNotFound
from cloister.serve.sources import ModelSource, version_order
from cloister.serve.spec import worker_spec
from cloister.serve.supervisor import Supervisor
from cloister.serve.tmpfs import PrivateFolder, remove_folder, remove_stale
from cloister.settings import ServeSettings

if TYPE_CHECKING:
    from cloister.serve.tracing import Tracer


class Conflict(AlreadyRegistered):
    """This version of the model is there already."""


@dataclass(frozen=True, slots=True)
class Model:
    """One loaded version of a model."""

    source: ModelSource
    supervisor: Supervisor
    folder: Path = field(repr=False)
    """Its unpacked files; removed with it."""

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
    """Loaded models, their workers, and the folder in memory that these are unpacked into."""

    def __init__(self, settings: ServeSettings) -> None:
        self.generation = 0
        """Changes whenever a lookup could come out differently; whoever keeps one looks here."""
        self._settings = settings
        self._models: dict[str, dict[str, Model]] = {}
        self._defaults: dict[str, str] = {}
        self._arriving: set[tuple[str, str]] = set()
        self._folders: PrivateFolder | None = None
        self._placement: Placement | None = None
        self._groups: WorkerGroups | None = None
        self.tracer: Tracer | None = None
        """Sees the requests of all models that are loaded after it is set."""

    def __iter__(self) -> Iterator[Model]:
        for versions in list(self._models.values()):
            yield from list(versions.values())

    @property
    def healthy(self) -> bool:
        """Whether every model has the workers that it wants at least one of."""
        return all(model.supervisor.ready for model in self)

    def names(self) -> list[str]:
        """Names of all models, in the order in which they came."""
        return list(self._models)

    def versions(self, name: str) -> list[Model]:
        """Every version of one model, the oldest registration first; empty if there is none."""
        return list(self._models.get(name, {}).values())

    def find(self, name: str, version: str | None = None) -> Model:
        """The model of this name; its default version if none is given.

        Raises:
            ModelNotFound: no such model, or no such version of it.
        """
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(f"Model not found: {name[:128]}")
        model = versions.get(self._defaults[name] if version is None else version)
        if model is None:
            raise VersionNotFound(f"Model version: {(version or '')[:128]} does not exist for model: {name}")
        return model

    async def load(self, sources: Sequence[ModelSource]) -> None:
        """Register the models that the server starts with, side by side; the newest of each is default.

        Raises:
            ModelFailed, WorkerLost: one of them could not be made ready; the others are left to ``close``.
            ConfigError: the folder for unpacking cannot be used.
        """
        base = self.base_config()
        ordered = sorted(sources, key=_order)
        try:
            results = await asyncio.gather(
                *(self.register(item, ModelConfig.from_yaml(item.settings, base)) for item in ordered),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            for source in ordered:
                source.close()
            raise
        for source in ordered:  # whichever was ready first; the last of each name is the newest
            versions = self._models[source.name] = self._models.pop(source.name)
            versions[source.version] = versions.pop(source.version)
            self._defaults[source.name] = source.version
        self.generation += 1

    def base_config(self) -> ModelConfig:
        """What the server's settings say of every model."""
        settings = self._settings
        return ModelConfig(
            response_timeout_s=settings.request_timeout_s,
            startup_timeout_s=settings.startup_timeout_s,
            max_queue=settings.max_queue,
        )

    async def register(self, source: ModelSource, config: ModelConfig) -> Model:
        """Add one version: unpack it, start its workers, and only then let it be found.

        Takes over ``source`` unless it raises. The first version of a name becomes its default.

        Raises:
            Conflict: this version is there already.
            MalformedInput, BadCiphertext, ConfigError: the model's files are not what they should be.
            ModelFailed, WorkerLost: its workers could not be made ready.
        """
        name, version = key = source.name, source.version
        if self._is_taken(name, version):
            raise Conflict(f"Model version {version} is already registered for model {name}")
        self._arriving.add(key)
        try:
            folders = self._folders or self._open_folders()
            folder = folders.make(name)
            try:
                supervisor = await self._start(source, config, folder, folders)
            except BaseException:
                await asyncio.to_thread(remove_folder, folder)
                raise
        finally:
            self._arriving.discard(key)
        model = Model(source, supervisor, folder)
        self._models.setdefault(name, {})[version] = model
        self._defaults.setdefault(name, version)
        self.generation += 1
        return model

    async def unregister(self, name: str, version: str | None = None, *, timeout_s: float) -> None:
        """Let a version's requests finish, then remove it. Nothing new reaches it meanwhile.

        Raises:
            ModelNotFound: there is none.
            TimeoutError: its requests did not finish in time; it goes on as before. Not where the version was
                registered anew meanwhile: then they are waited for.
        """
        model = self.find(name, version)
        self._take_out(model)
        if not await model.supervisor.drain(timeout_s):
            if not self._is_taken(name, model.version):
                model.supervisor.resume()
                self._models.setdefault(name, {})[model.version] = model
                self._defaults.setdefault(name, model.version)
                self.generation += 1
                raise TimeoutError
            # Registered anew meanwhile, so there is no way back: what it still has may finish.
            await model.supervisor.drain(self._settings.request_timeout_s)
        await self._remove(model, drain_s=0.0)

    def set_default(self, name: str, version: str) -> None:
        """Choose the version that answers where none is named.

        Raises:
            ModelNotFound: no such model, or no such version of it.
        """
        self._defaults[name] = self.find(name, version).version
        self.generation += 1

    async def close(self, *, drain_s: float) -> None:
        """Stop all workers and remove what was unpacked."""
        models = list(self)
        await asyncio.gather(*(self._remove(model, drain_s=drain_s) for model in models))
        if self._folders is not None:
            self._folders.close()
        if self._groups is not None:
            self._groups.close()
        self._models.clear()
        self._defaults.clear()
        self.generation += 1

    def _is_taken(self, name: str, version: str) -> bool:
        """Whether this version is there, or on its way."""
        return (name, version) in self._arriving or version in self._models.get(name, {})

    def _take_out(self, model: Model) -> None:
        """Let it be found no more; another version answers where none is named."""
        versions = self._models[model.name]
        del versions[model.version]
        if not versions:
            del self._models[model.name], self._defaults[model.name]
        elif self._defaults[model.name] == model.version:
            self._defaults[model.name] = next(reversed(versions))
        self.generation += 1

    async def _start(
        self, source: ModelSource, config: ModelConfig, folder: Path, folders: PrivateFolder
    ) -> Supervisor:
        settings = self._settings
        if settings.remote_only:
            config = msgspec.structs.replace(config, min_workers=0, max_workers=0)
            await asyncio.to_thread(getattr, source, "digest")  # placing would have waited for it
        spec = worker_spec(
            settings,
            config,
            name=source.name,
            version=source.version,
            model_dir=folder if settings.remote_only else await asyncio.to_thread(source.place, folder),
            handler=config.handler or source.handler,
            groups=self._groups,
        )
        if self._placement is None:
            self._placement = Placement(settings.worker_cores, threads=settings.worker_threads)
        supervisor = Supervisor(
            spec,
            folders,
            config,
            request_timeout_s=settings.request_timeout_s,
            placement=self._placement,
            warm_spare=settings.warm_spare,
            remote_only=settings.remote_only,
            direct=None if spec.handler else parse_spec(source.settings),
            check_bytes=settings.schema_check_bytes,
        )
        if self.tracer is not None:
            self.tracer.attach(supervisor)
        try:
            await supervisor.start()
        except BaseException:
            await supervisor.stop(drain_s=0.0)
            raise
        return supervisor

    async def _remove(self, model: Model, *, drain_s: float) -> None:
        await model.supervisor.stop(drain_s=drain_s)
        await asyncio.to_thread(remove_folder, model.folder)
        model.source.close()

    def _open_folders(self) -> PrivateFolder:
        parent = Path(self._settings.tmpfs)
        if not parent.is_dir():
            raise ConfigError(f"serve.tmpfs: {parent} is not a folder")
        remove_stale(parent)
        self._folders = PrivateFolder(parent)
        self._groups = WorkerGroups.open()
        return self._folders

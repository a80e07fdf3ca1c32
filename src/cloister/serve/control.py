"""What the management API does, whichever protocol asks: register, scale, describe, choose, unregister.

Messages and statuses are TorchServe's, so that HTTP and gRPC say the same.

Source: pytorch/serve 0.12, ApiUtils.java, ModelManager.java.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cloister.errors import (
    CloisterError,
    ConfigError,
    MalformedInput,
    ModelFailed,
    ModelNotFound,
    ServingError,
    TransportError,
    WorkerLost,
)
from cloister.serve.download import is_url
from cloister.serve.facts import describe_model
from cloister.serve.log import log
from cloister.serve.manifest import RUNTIMES
from cloister.serve.model_config import MAX_WORKERS, ModelConfig, read_model_configs, whole_parameter
from cloister.serve.refusals import (
    BadRequest,
    CleaningTimedOut,
    DefaultVersionKept,
    DownloadFailed,
    InvalidModel,
    OutOfMemory,
    PackagesMissing,
    Refusal,
    VersionNotFound,
    WorkersFailed,
)
from cloister.serve.registry import Model, Registry
from cloister.serve.sources import ModelSource, ModelStore
from cloister.settings import ServeSettings

PROCESSING = "Processing worker updates..."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, as ``{"status": message}``."""

    status: int
    message: str


class ModelControl:
    """Management of one registry.

    Args:
        store: where models come from; None means that none can be registered.
    """

    def __init__(self, registry: Registry, store: ModelStore | None, settings: ServeSettings) -> None:
        self.registry = registry
        self._store = store
        self._settings = settings
        self._base = ModelConfig(
            response_timeout_s=settings.request_timeout_s,
            startup_timeout_s=settings.startup_timeout_s,
            max_queue=settings.max_queue,
        )
        self._properties = read_model_configs(settings.model_configs)
        self._urls: dict[tuple[str, str], str] = {}
        self._startup: set[str] = set()
        self.gone = [0] * 6
        """Answers by class of status of the models that are not there any more."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def use(self, store: ModelStore) -> None:
        """Take models from ``store`` from now on."""
        self._store = store

    # Registration.

    async def register(self, parameters: Mapping[str, str], *, synchronous: bool) -> Outcome:
        """Register the model at ``url``, and start its workers.

        Raises:
            Refusal, ModelNotFound: TorchServe's own, each with its status.
        """
        if "url" not in parameters:
            raise BadRequest("Parameter url is required.")
        runtime = parameters.get("runtime", "")
        if runtime and runtime not in RUNTIMES:
            raise BadRequest(f"Invalid RuntimeType value: {runtime[:64]}")
        if parameters.get("s3_sse_kms", "false").lower() == "true":
            raise BadRequest(
                "s3_sse_kms is not supported: use a pre-signed https URL that allowed_urls lists"
            )
        url = parameters["url"]
        source = await self.resolve(url, parameters)
        config = self._config_of(source, parameters, workers=self._settings.default_workers)
        workers = config.min_workers
        name, version = source.name, source.version
        if workers and not synchronous:
            model = await self._add(source, _without_workers(config), url)
            self._in_background(self._scale(model, workers, config.max_workers))
            return Outcome(202, PROCESSING)
        await self._add(source, config, url)
        if not workers:
            return Outcome(
                200,
                f'Model "{name}" Version: {version} registered with 0 initial workers. '
                "Use scale workers API to add workers for the model.",
            )
        return Outcome(200, f'Model "{name}" Version: {version} registered with {workers} initial workers')

    async def load(
        self, source: ModelSource, *, workers: int, url: str = "", in_background: bool = False
    ) -> Model:
        """Register a model that the server starts with.

        Args:
            in_background: do not wait for its workers; those that fail are tried again.
        Raises:
            CloisterError: it cannot be served.
        """
        config = self._config_of(source, {}, workers=workers, startup=True)
        try:
            model = await self.registry.register(
                source, _without_workers(config) if in_background else config
            )
        except BaseException:
            source.close()
            raise
        self._note(model, url)
        self._startup.add(model.name)
        if in_background:
            self._in_background(self._scale(model, config.min_workers, config.max_workers))
        return model

    async def unregister(self, name: str, version: str | None) -> Outcome:
        """Let the model's requests finish, and remove it.

        Raises:
            Refusal, ModelNotFound: not there, the default version of several, or not finished in time.
        """
        model = self.find(name, version)
        others = len(self.registry.versions(name)) > 1
        if others and self.registry.find(name).version == model.version:
            raise DefaultVersionKept(f"Cannot remove default version for model {name}")
        try:
            await self.registry.unregister(name, model.version, timeout_s=self._settings.unregister_timeout_s)
        except TimeoutError as error:
            raise CleaningTimedOut(f"Timed out while cleaning resources: {name}") from error
        self.gone = [a + b for a, b in zip(self.gone, model.supervisor.stats.by_class, strict=True)]
        left = [other.version for other in self.registry.versions(name)]
        if model.version not in left:  # else it was registered anew meanwhile
            url = self._urls.pop((name, model.version), "")
            if is_url(url):  # what was fetched for it goes with it
                with contextlib.suppress(OSError):
                    (Path(self._settings.model_store) / model.url).unlink()
        if not left:
            self._startup.discard(name)
        return Outcome(200, f'Model "{name}" unregistered')

    # Changes.

    async def scale(
        self, name: str, version: str | None, parameters: Mapping[str, str], *, synchronous: bool
    ) -> Outcome:
        """Set how many workers a model has.

        Raises:
            Refusal, ModelNotFound: not there, or numbers that cannot be.
        """
        low = whole_parameter(parameters, "min_worker", 1)
        high = whole_parameter(parameters, "max_worker", low)
        version = version or parameters.get("model_version") or None
        if high < low:
            raise BadRequest("max_worker cannot be less than min_worker.")
        model = self.find(name, version)
        if low < 0:
            raise WorkersFailed(f"min_worker is {low}, expected 0 or more")
        low, high = min(low, MAX_WORKERS), min(high, MAX_WORKERS)
        if not synchronous:
            self._in_background(self._scale(model, low, high))
            return Outcome(202, PROCESSING)
        try:
            await model.supervisor.scale(low, high, wait=True)
        except (ModelFailed, WorkerLost) as error:
            raise _failed(name, version, error) from error
        message = f"Workers scaled to {low} for model: {name}"
        return Outcome(200, message if version is None else f"{message}, version: {version}")

    def set_default(self, name: str, version: str) -> Outcome:
        """Choose the version that answers where none is named.

        Raises:
            ModelNotFound: no such model, or version of it.
        """
        self.find(name, None)
        try:
            self.registry.set_default(name, version)
        except ModelNotFound as error:
            raise VersionNotFound(f"Model version {version} does not exist for model {name}") from error
        return Outcome(200, f'Default version successfully updated for model "{name}" to "{version}"')

    # Views.

    def find(self, name: str, version: str | None) -> Model:
        """The model, or its default version.

        Raises:
            ModelNotFound, VersionNotFound: it is not there.
        """
        return self.registry.find(name, version)

    def list_models(self, limit: int, token: int) -> dict[str, Any]:
        """One page of the names, with ``nextPageToken`` where there is another."""
        if not 0 <= limit <= 100:
            limit = 100
        token = max(0, token)
        names = sorted(self.registry.names())
        last = token + limit
        page = [
            {"modelName": name, "modelUrl": self.url_of(self.registry.find(name))}
            for name in names[token:last]
        ]
        return {"models": page} if last > len(names) else {"nextPageToken": str(last), "models": page}

    def describe(self, name: str, version: str | None) -> list[dict[str, Any]]:
        """Facts of one version, or with ``all`` of every one.

        Raises:
            ModelNotFound, VersionNotFound: it is not there.
        """
        if version == "all":
            self.find(name, None)
            return [self._facts(model) for model in self.registry.versions(name)]
        return [self._facts(self.find(name, version))]

    def url_of(self, model: Model) -> str:
        """Where the model came from, as the caller or the configuration named it."""
        return self._urls.get((model.name, model.version)) or model.url

    @property
    def startup_models(self) -> frozenset[str]:
        """Names of the models that the server started with."""
        return frozenset(self._startup)

    async def close(self) -> None:
        """End what still runs in the background."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Details.

    async def resolve(self, url: str, parameters: Mapping[str, str]) -> ModelSource:
        """The model at ``url`` of the store, with a name, handler and runtime that the parameters may give.

        Raises:
            Refusal, ModelNotFound: TorchServe's own.
        """
        if self._store is None:
            raise BadRequest("this server has no model store to register from")
        try:
            return await asyncio.to_thread(
                self._store.resolve,
                url,
                model_name=parameters.get("model_name", ""),
                handler=parameters.get("handler", ""),
                runtime=parameters.get("runtime", ""),
            )
        except Refusal:
            raise
        except MalformedInput as error:
            raise InvalidModel(error.message) from error
        except TransportError as error:
            raise DownloadFailed(error.message) from error
        except ModelNotFound:
            raise
        except (ServingError, ConfigError) as error:
            raise WorkersFailed(error.message) from error

    async def _add(self, source: ModelSource, config: ModelConfig, url: str) -> Model:
        name, version = source.name, source.version
        try:
            model = await self.registry.register(source, config)
        except (ModelFailed, WorkerLost) as error:
            source.close()
            raise _failed(name, version, error) from error
        except MalformedInput as error:
            source.close()
            raise InvalidModel(error.message) from error
        except BaseException:
            source.close()
            raise
        self._note(model, url)
        log.info("model registered", model=name, version=version)
        return model

    def _config_of(
        self, source: ModelSource, parameters: Mapping[str, str], *, workers: int, startup: bool = False
    ) -> ModelConfig:
        entry = self._properties.get(source.name, {}).get(source.version, {})
        if not startup:  # TorchServe asks its configuration for workers at start only
            entry = {key: value for key, value in entry.items() if key not in ("minWorkers", "maxWorkers")}
        base = msgspec.structs.replace(self._base, min_workers=workers, max_workers=workers)
        merged = base.merged(properties=entry, archive=source.settings, parameters=parameters)
        return msgspec.structs.replace(merged, handler=source.handler, runtime=source.manifest.runtime)

    def _note(self, model: Model, url: str) -> None:
        if url:
            self._urls[model.name, model.version] = url

    def _facts(self, model: Model) -> dict[str, Any]:
        return describe_model(model, url=self.url_of(model), at_startup=model.name in self._startup)

    async def _scale(self, model: Model, low: int, high: int) -> None:
        try:
            await model.supervisor.scale(low, high, wait=True)
        except CloisterError as error:
            log.warning("scaling failed", model=model.name, version=model.version, reason=error.message)

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _without_workers(config: ModelConfig) -> ModelConfig:
    return msgspec.structs.replace(config, min_workers=0, max_workers=0)


def _failed(name: str, version: str | None, error: CloisterError) -> Refusal:
    if error.message.startswith("Custom pip package installation failed"):
        return PackagesMissing(error.message)
    kind = OutOfMemory if "MemoryError" in error.message or "Out of" in error.message else WorkersFailed
    log.warning("workers failed", model=name, version=version, reason=type(error).__name__)
    shown = "null" if version is None else version
    return kind(f"Failed to start workers for model {name} version: {shown}")

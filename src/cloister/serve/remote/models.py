"""A worker host's models: found by digest, unlocked by the host's own attestation, placed in memory once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from cloister.attest.model import Attester
from cloister.errors import ConfigError, MalformedInput, ModelNotFound
from cloister.serve.groups import WorkerGroups
from cloister.serve.model_config import ModelConfig
from cloister.serve.plain_store import PlainStore
from cloister.serve.process import WorkerSpec
from cloister.serve.remote.digests import Digests, stored_models
from cloister.serve.remote.messages import ModelKey
from cloister.serve.sources import ModelSource, is_model_name
from cloister.serve.sources import ModelStore as Store
from cloister.serve.spec import worker_spec
from cloister.serve.tmpfs import PrivateFolder, remove_folder
from cloister.serve.unlock import SealedStore
from cloister.settings import ServeSettings

KEEP_S = 600.0
"""A model without workers stays in memory for so long, so that a frontend that comes back finds it ready."""


@dataclass(slots=True)
class _Placed:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    folder: Path | None = None
    made: Path | None = None
    handler: str = ""
    users: int = 0
    idle_since: float = 0.0


class HostModels:
    """The models of one host. Keys come from its own broker or cache, never from the frontend."""

    def __init__(
        self,
        settings: ServeSettings,
        attester: Attester | None,
        folders: PrivateFolder,
        *,
        groups: WorkerGroups | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._groups = groups
        self._store: Store
        if attester is None:
            self._store = PlainStore(Path(settings.model_store))
        else:
            self._store = SealedStore(settings, attester)
        self._folders = folders
        self._clock = clock
        self._digests = Digests()
        self._there: dict[str, str] = {}
        self._placed: dict[ModelKey, _Placed] = {}

    async def look(self) -> frozenset[str]:
        """The digests of what is in the store now."""
        self._there = await asyncio.to_thread(stored_models, self._settings, self._digests)
        return frozenset(self._there)

    @contextlib.asynccontextmanager
    async def using(self, key: ModelKey, config: ModelConfig) -> AsyncIterator[WorkerSpec]:
        """What to start a worker of this model with; the model stays in memory meanwhile.

        Raises:
            MalformedInput: not a model's name.
            ModelNotFound: the store has nothing with this digest any more.
            VerificationError, KeyUnavailable, TransportError: its key was not to be had.
            ConfigError: it cannot be placed.
        """
        if not is_model_name(key.name) or not is_model_name(key.version):
            raise MalformedInput("the frontend names a model as none can be called")
        self._forget_idle()
        placed = self._placed.setdefault(key, _Placed())
        placed.users += 1
        try:
            async with placed.lock:
                if placed.folder is None:
                    await self._place(key, config, placed)
            assert placed.folder is not None
            yield worker_spec(
                self._settings,
                config,
                name=key.name,
                version=key.version,
                model_dir=placed.folder,
                handler=placed.handler,
                groups=self._groups,
            )
        finally:
            placed.users -= 1
            placed.idle_since = self._clock()
            if placed.folder is None and not placed.users:
                self._placed.pop(key, None)

    async def _place(self, key: ModelKey, config: ModelConfig, placed: _Placed) -> None:
        url = self._there.get(key.digest)
        if url is None:
            raise ModelNotFound(f"model {key.name} {key.version} with this digest is not in the store")
        source = await asyncio.to_thread(self._resolve, key, config, url)
        folder = self._folders.make(key.name)
        try:
            placed.folder = await asyncio.to_thread(source.place, folder)
        except BaseException:
            remove_folder(folder)
            raise
        finally:
            source.close()
        placed.made, placed.handler = folder, source.handler

    def _resolve(self, key: ModelKey, config: ModelConfig, url: str) -> ModelSource:
        if self._settings.mode == "protected":
            source = self._store.resolve(url)
            found = source.digest
        else:
            source = self._store.resolve(url, model_name=key.name, handler=config.handler)
            found = self._digests.of(Path(self._settings.model_store) / source.url)
        if found != key.digest:
            source.close()
            raise ConfigError(
                f"model {key.name} {key.version} has digest {found[:16]}…, the frontend's {key.digest[:16]}…"
            )
        return source

    def _forget_idle(self) -> None:
        now = self._clock()
        for key, placed in list(self._placed.items()):
            if not placed.users and now - placed.idle_since > KEEP_S:
                del self._placed[key]
                if placed.made is not None:
                    remove_folder(placed.made)

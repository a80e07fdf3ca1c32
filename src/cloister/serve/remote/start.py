"""A frontend with worker hosts: its port, fed from its registry."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from cloister.attest.attester import pick_attester
from cloister.errors import CloisterError
from cloister.serve.listen import bind
from cloister.serve.log import log
from cloister.serve.model_config import ModelConfig
from cloister.serve.registry import Model, Registry
from cloister.serve.remote.backend import RemoteWorker
from cloister.serve.remote.digests import Digests
from cloister.serve.remote.messages import ModelKey
from cloister.serve.remote.port import WorkerPort
from cloister.serve.remote.tls import make_link_key
from cloister.serve.remote.trust import frontend_trust
from cloister.settings import ServeSettings, Settings, settings_digest


async def open_worker_port(settings: Settings, registry: Registry, stack: AsyncExitStack) -> WorkerPort:
    """The port of ``serve.worker_port``, open; ``settings`` are ``with_contents``.

    It is closed by ``stack``, after the registry if that one's end is pushed later, so that what hosts have
    been given is answered first.

    Raises:
        ConfigError: the port is taken, or nobody could join with these settings.
        VerificationError: this machine's own evidence does not verify.
    """
    serve = settings.serve
    sock = bind(serve.worker_host or serve.host, serve.worker_port)
    stack.callback(sock.close)
    attester = None
    if serve.mode == "protected":
        attester = await asyncio.to_thread(
            pick_attester, settings.attest, mr_config_id=settings_digest(settings)
        )
    own, demands = await asyncio.to_thread(frontend_trust, settings, attester)
    catalogue = RegistryCatalogue(registry, serve)
    port = WorkerPort(
        sock,
        make_link_key(),
        own,
        demands,
        catalogue,
        timeout_s=serve.worker_timeout_s,
        max_age_s=serve.worker_max_age_s,
    )
    stack.push_async_callback(port.close)
    port.start()
    address, number = sock.getsockname()[:2]
    log.info("worker port open", address=address, port=number)
    return port


class Served:
    """A model of the registry, as hosts see it."""

    def __init__(self, model: Model) -> None:
        self._supervisor = model.supervisor

    @property
    def config(self) -> ModelConfig:
        return self._supervisor.config

    @property
    def workers(self) -> int:
        return sum(view.status != "STOPPING" for view in self._supervisor.workers())

    def attach(self, worker: RemoteWorker) -> None:
        self._supervisor.attach(worker)

    def detach(self, worker: RemoteWorker) -> None:
        self._supervisor.detach(worker)


class RegistryCatalogue:
    """The registry's models by content. A plain archive's digest is computed in a thread, once."""

    def __init__(self, registry: Registry, settings: ServeSettings) -> None:
        self._registry = registry
        self._store = Path(settings.model_store)
        self._digests = Digests()
        self._known: dict[tuple[str, str, str], str] = {}
        self._asked: set[tuple[str, str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen = -1
        self._served: dict[ModelKey, Served] = {}

    def __call__(self) -> Mapping[ModelKey, Served]:
        if self._seen != self._registry.generation:
            self._seen = self._registry.generation
            self._served = {}
            for model in self._registry:
                digest = model.digest or self._digest(model)
                if digest:
                    self._served[ModelKey(model.name, model.version, digest)] = Served(model)
        return self._served

    def _digest(self, model: Model) -> str:
        key = (model.name, model.version, model.url)
        if key not in self._known and key not in self._asked:
            self._asked.add(key)
            task = asyncio.get_running_loop().create_task(self._compute(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return self._known.get(key, "")

    async def _compute(self, key: tuple[str, str, str]) -> None:
        try:
            self._known[key] = await asyncio.to_thread(self._digests.of, self._store / key[2])
        except (CloisterError, OSError) as error:
            log.warning("model without a digest: not for worker hosts", model=key[0], reason=str(error)[:200])
        self._seen = -1

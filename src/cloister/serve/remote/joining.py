"""``run_worker``: a worker host as one blocking call, from settings to exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from cloister.attest.attester import pick_attester
from cloister.crypto.locked import forbid_dumps
from cloister.errors import CloisterError, ConfigError, TransportError
from cloister.serve.faults import report_crashes_without_content
from cloister.serve.groups import WorkerGroups
from cloister.serve.hardening import refuse_unmeasured_inputs
from cloister.serve.log import configure_log, log
from cloister.serve.placement import Placement
from cloister.serve.remote import messages
from cloister.serve.remote.channel import Channel, RefusedByPeer, connect, prove_each_other
from cloister.serve.remote.messages import (
    Assign,
    Challenge,
    Ended,
    FromFrontend,
    Leave,
    Offer,
    Ping,
    Pong,
    Withdraw,
)
from cloister.serve.remote.models import HostModels
from cloister.serve.remote.proof import Credentials, Demands
from cloister.serve.remote.renewal import Answers, Standing
from cloister.serve.remote.slot import run_slot
from cloister.serve.remote.tls import LinkKey, make_link_key
from cloister.serve.remote.trust import host_digest, host_trust, with_contents
from cloister.serve.tmpfs import PrivateFolder, remove_stale, require_memory
from cloister.settings import Settings

CONNECT_S = 5.0
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
LOOK_S = 15.0
"""How often the model store is looked through for something new."""
LEAVE_S = 60.0
OPEN_WARNING = "Cloister: OPEN MODE: the frontend is known by a token only, models are NOT protected"


def run_worker(settings: Settings, *, ready: Callable[[str], None] = lambda line: None) -> None:
    """Work for a frontend until SIGTERM or SIGINT, then leave gracefully and return.

    A frontend that cannot be reached is sought again, at first quickly, then every few seconds.

    Args:
        ready: called with a line for people each time that it has joined.
    Raises:
        CloisterError: it could not start, or the frontend refuses it, or it refuses the frontend.
    """
    settings = with_contents(settings)
    serve = settings.serve
    configure_log(serve.log_level)
    if serve.mode == "protected":
        report_crashes_without_content()
        refuse_unmeasured_inputs(os.environ)
        forbid_dumps()
        require_memory(Path(serve.tmpfs))
    else:
        print(OPEN_WARNING, file=sys.stderr, flush=True)
    host, port = frontend_address(settings.worker.frontend)
    attester = None
    if serve.mode == "protected":
        attester = pick_attester(settings.attest, mr_config_id=host_digest(settings))
    own, demands = host_trust(settings, attester)
    remove_stale(Path(serve.tmpfs))
    groups = WorkerGroups.open()
    with (
        contextlib.nullcontext() if groups is None else contextlib.closing(groups),
        PrivateFolder(Path(serve.tmpfs)) as folders,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        worker = WorkerHost(
            settings,
            HostModels(serve, attester, folders, groups=groups),
            folders,
            Trust(make_link_key(), own, demands),
            (host, port),
            ready=ready,
        )
        runner.run(worker.run_until_signal())


def frontend_address(url: str) -> tuple[str, int]:
    """Host and port of ``https://host:port``.

    Raises:
        ConfigError: not of this form.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "https" or not parts.hostname or not port or parts.path not in ("", "/"):
        raise ConfigError(
            f"worker.frontend: {url[:200]!r} is not https://host:port",
            hint="the port is the frontend's serve.worker_port",
        )
    return parts.hostname, port


@dataclass(frozen=True, slots=True)
class Trust:
    """This host's key for links, what it proves with it, and what it demands."""

    key: LinkKey
    own: Credentials
    demands: Demands


class WorkerHost:
    """Seeks its frontend, joins it, and does what it is assigned, until it is told to leave."""

    def __init__(
        self,
        settings: Settings,
        models: HostModels,
        folders: PrivateFolder,
        trust: Trust,
        frontend: tuple[str, int],
        *,
        ready: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._models = models
        self._folders = folders
        self._trust = trust
        self._frontend = frontend
        self._ready = ready
        self._placement = Placement(settings.serve.worker_cores, threads=settings.serve.worker_threads)
        self._stop = asyncio.Event()
        self._slots: dict[int, asyncio.Task[None]] = {}

    async def run_until_signal(self) -> None:
        """Seek and join, again and again.

        Raises:
            CloisterError: refused, by either side.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_fault)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        pause_s = FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                await self._join_once()
                pause_s = FIRST_PAUSE_S
            except TransportError as error:
                log.warning("frontend not reached", reason=error.message, pause_s=round(pause_s, 1))
            except RefusedByPeer as error:
                if not error.again:
                    raise
                log.warning("frontend refuses for now", reason=error.message)
            # Many hosts lose a frontend at the same moment; they should not all come back in the same one.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):  # noqa: S311
                    await self._stop.wait()
            pause_s = min(MAX_PAUSE_S, pause_s * 2)

    async def _join_once(self) -> None:
        """From connecting to the end of the connection; returns when a joined frontend is lost or leaves."""
        digests = await self._models.look()
        if not digests:
            raise ConfigError(
                f"serve.model_store: no usable model in {self._settings.serve.model_store}",
                hint="the host's own store must hold what the frontend serves",
            )
        trust = self._trust
        channel = await connect(*self._frontend, trust.key.join, timeout_s=CONNECT_S)
        try:
            peer, transcript = await prove_each_other(
                channel, "worker", own_spki=trust.key.spki, own=trust.own, demands=trust.demands
            )
            channel.send(self._offer(digests))
            tier = "open mode" if peer.result is None else f"tier {peer.result.tier.name.lower()}"
            host, port = self._frontend
            self._ready(f"Cloister worker joined https://{host}:{port} ({tier})")
            log.info("joined", frontend=host, port=port, tier=tier)
            proofs = Answers(channel, Standing(transcript, trust.own, trust.demands))
            reason = await self._work(channel, digests, proofs)
            if self._stop.is_set():
                log.info("left", reason=reason)
            else:
                log.warning("frontend lost", reason=reason)
        finally:
            await self._end_all()
            channel.close()

    def _offer(self, digests: frozenset[str]) -> Offer:
        worker = self._settings.worker
        return Offer((worker.name or socket.gethostname())[:128], worker.slots, digests)

    async def _work(self, channel: Channel, digests: frozenset[str], proofs: Answers) -> str:
        works = (
            self._obey(channel, proofs),
            self._beat(channel),
            self._look(channel, digests),
            self._leave(channel),
            proofs.keep(),
        )
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if isinstance(error, TransportError):
                    return error.message
                if isinstance(error, CloisterError) and not isinstance(error, RefusedByPeer):
                    channel.send(messages.Refused(error.message[:1000]))
                if error is not None:
                    raise error
            return "it stopped"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _obey(self, channel: Channel, proofs: Answers) -> None:
        kind: Any = FromFrontend
        while True:
            message: Any = await channel.receive(
                kind, limit=messages.MAX_CONTROL_BYTES, timeout_s=self._settings.worker.timeout_s
            )
            if isinstance(message, Ping):
                channel.send(Pong(message.sent))
            elif isinstance(message, Assign):
                self._begin(message, channel)
            elif isinstance(message, Withdraw) and message.slot in self._slots:
                self._slots[message.slot].cancel()
            elif isinstance(message, Challenge | messages.Proof):
                proofs.take(message)
            elif isinstance(message, Leave):
                return
            elif isinstance(message, messages.Refused):
                raise RefusedByPeer(message, f"the frontend at {channel.address}")

    async def _beat(self, channel: Channel) -> None:
        while True:
            channel.send(Ping())
            await asyncio.sleep(self._settings.worker.timeout_s / 4)

    async def _look(self, channel: Channel, digests: frozenset[str]) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            found = await self._models.look()
            if found != digests:
                digests = found
                channel.send(self._offer(digests))

    async def _leave(self, channel: Channel) -> None:
        """After a signal: say so, and wait for the frontend to say that it has all its answers."""
        await self._stop.wait()
        log.info("leaving")
        channel.send(Leave())
        await asyncio.sleep(LEAVE_S)

    def _begin(self, assign: Assign, channel: Channel) -> None:
        if assign.slot in self._slots:
            return
        task = asyncio.get_running_loop().create_task(self._run(assign, channel))
        self._slots[assign.slot] = task

    async def _run(self, assign: Assign, channel: Channel) -> None:
        host, port = self._frontend

        async def dial() -> Channel:
            return await connect(host, port, self._trust.key.data, timeout_s=CONNECT_S)

        reason = "the slot was given up"
        try:
            reason = await run_slot(
                assign,
                models=self._models,
                folders=self._folders,
                placement=self._placement,
                workers=max(1, self._settings.worker.slots, len(self._slots)),
                dial=dial,
            )
        finally:
            self._slots.pop(assign.slot, None)
            channel.send(Ended(assign.slot, reason[:1000]))

    async def _end_all(self) -> None:
        tasks = list(self._slots.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's own report prints tracebacks, which can hold what a caller sent."""
    log.error("event loop fault", exception=type(context.get("exception")).__name__)

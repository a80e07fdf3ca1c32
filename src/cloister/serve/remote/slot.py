"""One slot of a worker host: a sandboxed worker process here, and its connection to the frontend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from cloister.errors import CloisterError, MalformedInput
from cloister.serve.log import log
from cloister.serve.model_config import ModelConfig
from cloister.serve.placement import Placement, count_gpus
from cloister.serve.process import WorkerProcess, WorkerSpec
from cloister.serve.remote.bridge import End, join
from cloister.serve.remote.channel import Channel
from cloister.serve.remote.messages import Assign, Attach
from cloister.serve.remote.models import HostModels
from cloister.serve.tmpfs import PrivateFolder, remove_folder

ENDING_S = 1.0
"""A worker process without a connection is ended after this."""
Dial = Callable[[], Awaitable[Channel]]


async def run_slot(
    assign: Assign,
    *,
    models: HostModels,
    folders: PrivateFolder,
    placement: Placement,
    workers: int,
    dial: Dial,
) -> str:
    """Serve one assignment until its worker has ended; returns why, in words without content.

    Cancelling it ends the worker at once.

    Args:
        workers: how many the host runs; they share its processors.
    """
    try:
        config = read_config(assign.config)
        async with models.using(assign.model, config) as spec:
            return await _serve(
                assign, config, spec, folders=folders, placement=placement, workers=workers, dial=dial
            )
    except CloisterError as error:
        log.warning("slot failed", model=assign.model.name, slot=assign.slot, reason=error.message)
        # The frontend's operator needs the reason; what a handler said stays on this machine.
        return error.message[:1000]


def read_config(raw: bytes) -> ModelConfig:
    """The configuration in an assignment.

    Raises:
        MalformedInput: not one.
    """
    try:
        return msgspec.json.decode(raw, type=ModelConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedInput("the frontend sent no configuration of a model") from error


async def _serve(
    assign: Assign,
    config: ModelConfig,
    spec: WorkerSpec,
    *,
    folders: PrivateFolder,
    placement: Placement,
    workers: int,
    dial: Dial,
) -> str:
    ended = asyncio.Event()
    worker = WorkerProcess(on_end=lambda _: ended.set())
    link = End(lambda: worker.kill("its connection to the frontend ended"))
    scratch = folders.make(assign.model.name)
    place = placement.take(index=assign.slot, workers=workers)
    try:
        await worker.start(
            spec,
            scratch,
            timeout_s=config.startup_timeout_s,
            place=place,
            gpu_id=pick_gpu(config, assign.slot),
        )
        # A worker that closes its connection is ending, or of no use; the process's own end is what counts.
        loop = asyncio.get_running_loop()
        local = End(lambda: loop.call_later(ENDING_S, worker.kill, worker.reason))
        worker.hand_over(local)
        channel = await dial()
        channel.send(Attach(assign.ticket, worker.pid, worker.state))
        channel.hand_over(link)
        join(local, link)
        log.info("worker ready", model=spec.name, version=spec.version, pid=worker.pid, slot=assign.slot)
        await ended.wait()
        return worker.reason
    finally:
        worker.kill("the slot was given up")
        if worker.pid:
            await ended.wait()
        link.close()
        placement.give_back(place)
        remove_folder(scratch)


def pick_gpu(config: ModelConfig, slot: int) -> int | None:
    """A GPU of this host, in turn; the frontend's own numbers mean nothing here."""
    gpus = 0 if config.device_type == "cpu" else count_gpus()
    return slot % gpus if gpus else None

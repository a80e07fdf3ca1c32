"""``run_server``: the model server as one blocking call, from settings to exit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import uvloop

from cloister.crypto.locked import forbid_dumps
from cloister.serve.hardening import refuse_unmeasured_inputs, swap_areas
from cloister.serve.http.api import Api, Way
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.listen import Listener, Listeners, bind
from cloister.serve.log import configure_log, log
from cloister.serve.registry import Registry
from cloister.serve.sources import open_archives, parse_wanted
from cloister.serve.tmpfs import require_memory
from cloister.settings import Settings

OPEN_PORT = 8080
DRAIN_S = 30.0
OPEN_WARNING = "Cloister: OPEN MODE: models, requests and answers are NOT protected"


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully and return.

    Raises:
        CloisterError: it could not start; the message says why in one line.
    """
    configure_log(settings.serve.log_level)
    if settings.serve.mode == "protected":
        refuse_unmeasured_inputs(os.environ)
        forbid_dumps()
        require_memory(Path(settings.serve.tmpfs))
        _warn_of_swap()
    else:
        print(OPEN_WARNING, file=sys.stderr, flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run_until_signal(settings))


def _warn_of_swap() -> None:
    areas = swap_areas(Path("/proc/swaps").read_text(encoding="utf-8"))
    if areas:
        log.warning("swap is on: what is in memory may be written to it", areas=areas)


def _log_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's own report prints tracebacks, which can hold what a caller sent."""
    log.error("event loop fault", exception=type(context.get("exception")).__name__)


async def _run_until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_fault)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        starting = asyncio.create_task(_start(settings, stack))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            return
        print(starting.result(), flush=True)
        await stop.wait()
        log.info("stopping")


async def _start(settings: Settings, stack: AsyncExitStack) -> str:
    """Bring everything up, in an order in which ``stack`` can take it down; returns the line for people."""
    serve = settings.serve
    registry = Registry(serve)
    stack.push_async_callback(registry.close, drain_s=DRAIN_S)
    api = Api(registry, protected=serve.mode == "protected", max_request_bytes=serve.max_request_bytes)
    if serve.mode == "protected":
        # Imported here, because an open server needs neither attestation nor its libraries.
        from cloister.serve.protected import start_protected

        listeners = await start_protected(settings, api, registry, stack)
    else:
        app = AsgiApp(api, Way.OPEN, body_timeout_s=serve.request_timeout_s)
        sock = bind(serve.host, serve.http_port or OPEN_PORT)
        stack.callback(sock.close)
        listeners = [Listener(sock, app)]
        await registry.load(open_archives(Path(serve.model_store), parse_wanted(serve.models)))
    ports = Listeners(listeners, drain_s=DRAIN_S)
    await ports.start()
    stack.push_async_callback(ports.stop)
    names = ", ".join(f"{model.name} {model.version}" for model in registry) or "no model"
    return f"Cloister serves {names} at {' and '.join(item.url for item in listeners)}"

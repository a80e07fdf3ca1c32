"""``run_server``: the model server as one blocking call, from settings to exit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import uvloop

from cloister.crypto.locked import forbid_dumps
from cloister.errors import ConfigError
from cloister.serve.control import ModelControl
from cloister.serve.faults import report_crashes_without_content
from cloister.serve.frontends.group import KEPT_WAYS, Frontends, count_frontends
from cloister.serve.grpc_ports import open_grpc, refuse_tracing
from cloister.serve.hardening import refuse_unmeasured_inputs, swap_areas
from cloister.serve.http.access_log import AccessLog
from cloister.serve.http.api import Api
from cloister.serve.listen import Listeners
from cloister.serve.log import configure_log, log, log_fault
from cloister.serve.plain_store import PlainStore
from cloister.serve.ports import open_ports
from cloister.serve.registry import Registry
from cloister.serve.sources import parse_wanted
from cloister.serve.startup import load_archives, load_sources
from cloister.serve.tmpfs import require_memory
from cloister.serve.torchserve.key_file import KeyFile
from cloister.settings import ServeSettings, Settings

DRAIN_S = 30.0
OPEN_WARNING = "Cloister: OPEN MODE: models, requests and answers are NOT protected"


def run_server(settings: Settings, *, announce: str = "") -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully and return.

    Args:
        announce: a line to print besides when everything is up.
    Raises:
        CloisterError: it could not start; the message says why in one line.
    """
    configure_log(settings.serve.log_level)
    if settings.serve.worker_port:
        from cloister.serve.remote.trust import with_contents

        settings = with_contents(settings)
    elif settings.serve.remote_only:
        raise ConfigError("serve.remote_only without serve.worker_port: nobody could compute anything")
    if settings.serve.mode == "protected":
        report_crashes_without_content()
        refuse_unmeasured_inputs(os.environ)
        if settings.serve.grpc_port or settings.serve.grpc_management_port:
            refuse_tracing(os.environ)
        forbid_dumps()
        require_memory(Path(settings.serve.tmpfs))
        _warn_of_swap()
    else:
        print(OPEN_WARNING, file=sys.stderr, flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run_until_signal(settings, announce))


def _warn_of_swap() -> None:
    areas = swap_areas(Path("/proc/swaps").read_text(encoding="utf-8"))
    if areas:
        log.warning("swap is on: what is in memory may be written to it", areas=areas)


async def _run_until_signal(settings: Settings, announce: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_fault)
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
        if announce:
            print(announce, flush=True)
        await stop.wait()
        log.info("stopping")


async def _start(settings: Settings, stack: AsyncExitStack) -> str:
    """Bring everything up, in an order in which ``stack`` can take it down; returns the line for people."""
    serve = settings.serve
    registry = Registry(serve)
    if serve.worker_port:
        # Imported here, because it brings attestation along.
        from cloister.serve.remote.start import open_worker_port

        hosts = await open_worker_port(settings, registry, stack)
    _trace(registry, serve, stack)
    stack.push_async_callback(registry.close, drain_s=DRAIN_S)
    control = ModelControl(registry, None, serve)
    stack.push_async_callback(control.close)
    api = Api(registry, serve, control=control, keys=_make_tokens(serve, stack))
    await _guard(api, serve, stack)
    if serve.mode == "protected":
        # Imported here, because an open server needs neither attestation nor its libraries.
        from cloister.serve.protected import start_protected

        listeners = await start_protected(settings, api, registry, stack)
    else:
        with ExitStack() as sockets:
            listeners = open_ports(serve, api, sockets)
            stack.push(sockets.pop_all())
        await _load_open(serve, control)
        await open_grpc(serve, api, registry, stack, drain_s=DRAIN_S)
    access_log = AccessLog() if serve.access_log else None
    frontends = count_frontends(serve)
    handed = [item for item in listeners if frontends > 1 and item.app.way not in KEPT_WAYS]
    kept = [item for item in listeners if item not in handed]
    ports = Listeners(kept, drain_s=DRAIN_S, access_log=access_log)
    await ports.start()
    stack.push_async_callback(ports.stop)
    if handed:
        processes = Frontends(handed, serve, count=frontends, drain_s=DRAIN_S, access_log=access_log)
        await processes.start()
        stack.push_async_callback(processes.stop)
    if serve.worker_port:
        stack.callback(hosts.hold)
    names = ", ".join(f"{model.name} {model.version}" for model in registry) or "no model"
    line = f"Cloister serves {names} at {' and '.join(item.url for item in listeners)}"
    if serve.mode == "protected" and not serve.access_policy:
        from cloister.serve.access.setup import NOBODY

        line += f" ({NOBODY})"
    return line


def _trace(registry: Registry, serve: ServeSettings, stack: AsyncExitStack) -> None:
    """Have requests traced, where that is asked for."""
    if serve.otel_endpoint:
        # Imported here, because it brings OpenTelemetry along.
        from cloister.serve.tracing import Tracer, otlp_exporter

        processor = otlp_exporter(serve.otel_endpoint, os.environ, protected=serve.mode == "protected")
        registry.tracer = Tracer(processor, sample=serve.otel_sample)
        stack.push_async_callback(asyncio.to_thread, registry.tracer.close)


async def _guard(api: Api, serve: ServeSettings, stack: AsyncExitStack) -> None:
    """Have every request decided about, where that is asked for."""
    if serve.mode == "protected" or asks_who_calls(serve):
        # Imported here, because an open server that lets everybody in needs neither Cedar nor JOSE.
        from cloister.serve.access.setup import start_access_control

        api.use(await start_access_control(serve, stack))


async def _load_open(serve: ServeSettings, control: ModelControl) -> None:
    """The models that an open server starts with: TorchServe's list, or the store's."""
    store = PlainStore(
        Path(serve.model_store).absolute(),
        serve.allowed_urls,
        install=serve.install_requirements,
        default_handler=serve.default_handler,
        max_bytes=serve.max_model_bytes,
    )
    control.use(store)
    if serve.inference_address or serve.load_models:  # as TorchServe: nothing but what is listed
        await load_archives(
            control,
            serve.load_models,
            Path(serve.model_store),
            workers=serve.startup_workers,
            skip_broken=serve.skip_broken_models,
        )
        return
    sources = await asyncio.to_thread(store.wanted, parse_wanted(serve.models))
    await load_sources(control, sources, workers=serve.startup_workers)


def asks_who_calls(serve: ServeSettings) -> bool:
    """Whether an open server was told to look at its callers."""
    files = (serve.access_policy, serve.api_keys, serve.jwt_issuer, serve.jwt_audience, serve.jwt_jwks_url)
    callers = (serve.identities, serve.client_ca)
    logs = (serve.decision_log, serve.decision_log_key)
    return any((*files, *callers, *logs, serve.rate_per_s, serve.quota_per_day))


def _make_tokens(serve: ServeSettings, stack: AsyncExitStack) -> KeyFile | None:
    """TorchServe's tokens. A protected server's management is never without them."""
    manages = serve.management_port or serve.grpc_management_port
    if not serve.token_auth and not (serve.mode == "protected" and manages):
        return None
    keys = KeyFile(Path(serve.key_file), expiration_min=serve.token_expiration_min)
    stack.callback(keys.remove)
    return keys

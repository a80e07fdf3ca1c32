"""gRPC as a server's start sees it: nothing of it is imported before a port is asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from cloister.errors import ConfigError, MissingDependencyError
from cloister.serve.http.api import Api
from cloister.serve.http.ways import Way
from cloister.serve.log import log
from cloister.serve.registry import Registry
from cloister.settings import ServeSettings

if TYPE_CHECKING:
    from cloister.serve.identity import TlsPair

_VARIABLES = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}


async def open_grpc(
    settings: ServeSettings,
    api: Api,
    registry: Registry,
    stack: AsyncExitStack,
    *,
    tls: TlsPair | None = None,
    drain_s: float = 30.0,
) -> list[str]:
    """Open the gRPC ports that the settings name, with the tokens of the HTTP ports; returns their URLs.

    Args:
        tls: the attested key, in protected mode.
    Raises:
        MissingDependencyError: gRPC is asked for and not installed.
        ConfigError: an address that cannot be used, or a setting that would weaken the server.
    """
    if not settings.grpc_port and not settings.grpc_management_port:
        return []
    # Read by the library when it is loaded: its own lines are not ours to log, and workers do not fork.
    os.environ.update(_VARIABLES)
    try:
        from cloister.serve.grpc.server import start_grpc
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        raise MissingDependencyError(
            "gRPC needs the extra grpc", hint="pip install 'cloister[grpc]'"
        ) from error
    _silence()
    ports = await start_grpc(
        settings,
        registry,
        api.control,
        stack,
        admit=lambda asked, *shown: api.admit_call(Way.INFERENCE, *asked, *shown),
        admit_management=lambda asked, *shown: api.admit_call(Way.MANAGEMENT, *asked, *shown),
        management_is_guarded=api.asks_for_tokens,
        tls=tls,
        drain_s=drain_s,
    )
    urls = [port.url for port in ports]
    log.info("gRPC ready", addresses=urls)
    return urls


def _silence() -> None:
    """The library logs tracebacks, which can hold what a caller sent."""
    logger = logging.getLogger("grpc")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False


def refuse_tracing(environ: Mapping[str, str]) -> None:
    """Raise ``ConfigError`` if the environment changes gRPC: its traces show what callers send.

    For protected mode, before ``open_grpc``.
    """
    harmless = {*_VARIABLES, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"}  # the latter is for callers
    found = sorted(name for name in environ if name.startswith("GRPC_") and name not in harmless)
    if found:
        raise ConfigError(
            f"protected mode refuses to start gRPC with {', '.join(found)} set: it could show content",
            hint="unset it, or set serve.grpc_port = 0",
        )

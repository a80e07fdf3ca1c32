"""``cloister keys cache``: the key cache beside the workers."""

from __future__ import annotations

from typing import Annotated

import typer

from cloister.cli.options import ConfigFile
from cloister.cli.serve import effective_settings


def cache(
    config: ConfigFile = None,
    broker: Annotated[str | None, typer.Option(help="URL of the key broker.")] = None,
    broker_ca: Annotated[str | None, typer.Option(help="PEM certificate of the broker.")] = None,
    uri: Annotated[
        list[str] | None, typer.Option("--uri", help="A key that it may hold, kbs:///...; repeat.")
    ] = None,
    socket: Annotated[str | None, typer.Option(help="UNIX socket for this machine.")] = None,
    allowed_uid: Annotated[
        list[int] | None, typer.Option("--allowed-uid", help="A user who may ask over the socket; repeat.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="HTTPS port for other machines; 0 for none.")] = None,
    attester: Annotated[str | None, typer.Option(help="auto, or a name: see attest.attester.")] = None,
    simulated_platform: Annotated[str | None, typer.Option(help="Folder of a simulated platform.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    digest: Annotated[
        bool, typer.Option("--digest", help="Only print what it would prove as mr_config_id.")
    ] = False,
) -> None:
    """Hold keys in locked memory for the TEEs beside it, and serve on while the broker is down."""
    from cloister.kbs.cache.identity import MeasuredFiles, cache_digest
    from cloister.kbs.cache.service import run_cache

    flags = {
        "cache.broker": broker,
        "cache.broker_ca": broker_ca,
        "cache.uris": uri or None,
        "cache.socket": socket,
        "cache.allowed_uids": allowed_uid or None,
        "cache.port": port,
        "cache.log_level": log_level,
        "attest.attester": attester,
        "attest.simulated_platform": simulated_platform,
    }
    settings = effective_settings(config, dict(flags))
    if digest:
        typer.echo(cache_digest(settings, MeasuredFiles.read(settings.cache)).hex())
        return
    run_cache(settings)

"""``cloister worker``: this machine runs workers for a frontend on another one."""

from __future__ import annotations

from typing import Annotated

import typer

from cloister.cli.options import ConfigFile, Json
from cloister.cli.serve import effective_settings


def worker(
    config: ConfigFile = None,
    frontend: Annotated[
        str | None, typer.Option(help="https://host:port of the frontend's serve.worker_port.")
    ] = None,
    open_mode: Annotated[
        bool, typer.Option("--open", help="Open mode: plain archives and a join token; nothing is protected.")
    ] = False,
    token: Annotated[str | None, typer.Option(help="File of the join token.")] = None,
    name: Annotated[str | None, typer.Option(help="What the frontend calls this machine.")] = None,
    slots: Annotated[int | None, typer.Option(help="Workers to run; 0 for one of each model.")] = None,
    reference_values: Annotated[
        str | None, typer.Option("--reference-values", "-r", help="TOML file of the frontends to work for.")
    ] = None,
    simulated_root: Annotated[
        str | None, typer.Option(help="PEM root of a simulated frontend. Tests and demos only.")
    ] = None,
    model_store: Annotated[str | None, typer.Option(help="Folder of models, as the frontend's.")] = None,
    broker: Annotated[str | None, typer.Option(help="Base URL of the key broker, or a cache's.")] = None,
    broker_ca: Annotated[str | None, typer.Option(help="PEM certificate of the broker.")] = None,
    trusted_signers: Annotated[str | None, typer.Option(help="File of accepted model signers.")] = None,
    attester: Annotated[str | None, typer.Option(help="auto, or one by name: see attest.attester.")] = None,
    simulated_platform: Annotated[str | None, typer.Option(help="Folder of a simulated platform.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    digest: Annotated[
        bool, typer.Option("--digest", help="Only print what it would prove as mr_config_id.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run workers for a frontend on another machine; both prove themselves to each other first."""
    import json

    from cloister.serve.remote.joining import run_worker
    from cloister.serve.remote.trust import host_digest, with_contents

    flags = {
        "serve.mode": "open" if open_mode else None,
        "serve.model_store": model_store,
        "serve.broker": broker,
        "serve.broker_ca": broker_ca,
        "serve.trusted_signers": trusted_signers,
        "serve.log_level": log_level,
        "worker.frontend": frontend,
        "worker.token": token,
        "worker.name": name,
        "worker.slots": slots,
        "worker.reference_values": reference_values,
        "worker.simulated_root": simulated_root,
        "attest.attester": attester,
        "attest.simulated_platform": simulated_platform,
    }
    settings = effective_settings(config, dict(flags))
    if digest:
        text = host_digest(with_contents(settings)).hex()
        typer.echo(json.dumps({"digest": text}) if as_json else text)
        return

    def ready(line: str) -> None:
        print(json.dumps({"joined": settings.worker.frontend}) if as_json else line, flush=True)

    run_worker(settings, ready=ready)

"""``cloister serve | settings``: the operator's side."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import ConfigFile, Json
from cloister.cli.output import console, fields_table, show_json
from cloister.settings import Settings, load_settings, settings_digest

_PASSWORD = re.compile(r"(?<=://)([^/@:]*):.*@")


def serve(
    config: ConfigFile = None,
    open_mode: Annotated[
        bool, typer.Option("--open", help="Open mode: plain archives, plain HTTP, nothing is protected.")
    ] = False,
    model_store: Annotated[str | None, typer.Option(help="Folder of models.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="NAME or NAME=VERSION; repeat.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    https_port: Annotated[int | None, typer.Option(help="HTTPS port; 0 for none.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Plain HTTP port; 0 for none.")] = None,
    management_port: Annotated[int | None, typer.Option(help="Management API's port; 0 for none.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of metrics alone; 0 for none.")] = None,
    token_auth: Annotated[bool, typer.Option("--token-auth", help="Ask for TorchServe's tokens.")] = False,
    model_api: Annotated[bool, typer.Option("--model-api", help="Let models be added and removed.")] = False,
    broker: Annotated[str | None, typer.Option(help="Base URL of the key broker.")] = None,
    broker_ca: Annotated[str | None, typer.Option(help="PEM certificate of the broker.")] = None,
    trusted_signers: Annotated[str | None, typer.Option(help="File of accepted model signers.")] = None,
    access_policy: Annotated[
        str | None,
        typer.Option(help="Cedar policy of who may call what; without one protected mode answers 403."),
    ] = None,
    api_keys: Annotated[str | None, typer.Option(help="File of `cloister access key add`.")] = None,
    attester: Annotated[str | None, typer.Option(help="auto, or one by name: see attest.attester.")] = None,
    simulated_platform: Annotated[str | None, typer.Option(help="Folder of a simulated platform.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve models: sealed ones inside a TEE, or with --open plain ones on any machine."""
    from cloister.serve.server import run_server

    run_server(
        effective_settings(
            config,
            {
                "serve.mode": "open" if open_mode else None,
                "serve.model_store": model_store,
                "serve.models": model or None,
                "serve.host": host,
                "serve.https_port": https_port,
                "serve.http_port": http_port,
                "serve.management_port": management_port,
                "serve.metrics_port": metrics_port,
                "serve.token_auth": True if token_auth else None,
                "serve.model_api": True if model_api else None,
                "serve.broker": broker,
                "serve.broker_ca": broker_ca,
                "serve.trusted_signers": trusted_signers,
                "serve.access_policy": access_policy,
                "serve.api_keys": api_keys,
                "serve.log_level": log_level,
                "attest.attester": attester,
                "attest.simulated_platform": simulated_platform,
            },
        )
    )


def show_settings(config: ConfigFile = None, as_json: Json = False) -> None:
    """Show the effective settings, and the digest that a server with them proves as mr_config_id."""
    import msgspec

    from cloister.serve.remote.trust import with_contents

    settings = effective_settings(config, {})
    document = msgspec.to_builtins(settings)
    document["keys"]["database"] = _PASSWORD.sub(r"\1:(set)@", settings.keys.database)
    if settings.serve.keystore_password:
        document["serve"]["keystore_password"] = "(set)"  # noqa: S105 (what stands for it)
    digest = settings_digest(with_contents(settings)).hex()
    if as_json:
        show_json({**document, "digest": digest})
        return
    for section, values in document.items():
        console.print(fields_table(f"[{section}]", values))
    console.print(f"digest of [serve] and [attest] (mr_config_id): {digest}", soft_wrap=True)


def effective_settings(config: Path | None, flags: dict[str, object]) -> Settings:
    """Settings from flags, this process's environment and a file."""
    return load_settings(config, os.environ, flags)

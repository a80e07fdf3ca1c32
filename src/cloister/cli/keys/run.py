"""``cloister keys serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from cloister.cli.keys.access import Folder
from cloister.cli.options import ConfigFile
from cloister.cli.serve import effective_settings


def serve(
    config: ConfigFile = None,
    folder: Folder = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTPS port.")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A name or address that clients reach it by; repeat.")
    ] = None,
    reference_values: Annotated[str | None, typer.Option(help="TOML file of acceptable TEEs.")] = None,
    policy: Annotated[str | None, typer.Option(help="Cedar file that decides each release.")] = None,
    collateral: Annotated[str | None, typer.Option(help="JSON file of endorsements.")] = None,
    simulated_root: Annotated[str | None, typer.Option(help="PEM root of a simulated platform.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the broker over HTTPS; keys, certificate and admin token are made on first start."""
    from cloister.kbs.server import run_broker

    flags = {
        "keys.folder": folder,
        "keys.host": host,
        "keys.port": port,
        "keys.names": name,
        "keys.reference_values": reference_values,
        "keys.policy": policy,
        "keys.collateral": collateral,
        "keys.simulated_root": simulated_root,
        "keys.log_level": log_level,
    }
    run_broker(effective_settings(config, dict(flags)).keys)

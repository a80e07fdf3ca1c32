"""``cloister keys``: the key broker."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cloister.cli.options import ConfigFile, Json
from cloister.cli.output import console, fields_table, shorten, show_json
from cloister.cli.serve import effective_settings
from cloister.settings import KeysSettings

app = typer.Typer(help="The key broker: keeps data keys, releases them to TEEs that prove what they run.")
audit = typer.Typer(help="The hash-chained log of every release and refusal.")
app.add_typer(audit, name="audit")

Folder = Annotated[str | None, typer.Option(help="The broker's state folder.")]


@app.command("serve")
def serve(
    config: ConfigFile = None,
    folder: Folder = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTPS port.")] = None,
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
        "keys.reference_values": reference_values,
        "keys.policy": policy,
        "keys.collateral": collateral,
        "keys.simulated_root": simulated_root,
        "keys.log_level": log_level,
    }
    run_broker(effective_settings(config, dict(flags)).keys)


@app.command("list")
def list_keys(config: ConfigFile = None, folder: Folder = None, as_json: Json = False) -> None:
    """List what the broker holds: names and versions, never a key."""
    from cloister.kbs.records import list_resources

    rows = list_resources(_keys_settings(config, folder))
    if as_json:
        show_json(rows)
        return
    table = Table("resource", "version", "bytes", "created", title="resources", title_justify="left")
    for row in rows:
        table.add_row(row["uri"], str(row["version"]), str(row["bytes"]), row["created"])
    console.print(table)


@audit.command("verify")
def verify_log(config: ConfigFile = None, folder: Folder = None, as_json: Json = False) -> None:
    """Check the whole chain: an edited, removed or reordered line is found."""
    from cloister.kbs.audit import verify_audit_log

    summary = verify_audit_log(_keys_settings(config, folder))
    facts = {
        "entries": summary.entries,
        "releases": summary.releases,
        "refusals": summary.refusals,
        "head": summary.head,
    }
    if as_json:
        show_json(facts)
    else:
        console.print(fields_table("audit log verified", facts))


@audit.command("show")
def show_log(config: ConfigFile = None, folder: Folder = None, as_json: Json = False) -> None:
    """Show every release and refusal, oldest first."""
    from cloister.kbs.audit import read_audit_log

    rows = read_audit_log(_keys_settings(config, folder))
    if as_json:
        show_json(rows)
        return
    table = Table(title="audit log", title_justify="left")
    table.add_column("time", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for name in ("resource", "evidence", "reason"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            _clock(row["time"]), row["outcome"], row["resource"], shorten(row["evidence"], 20), row["reason"]
        )
    console.print(table)


def _keys_settings(config: Path | None, folder: str | None) -> KeysSettings:
    return effective_settings(config, {"keys.folder": folder}).keys


def _clock(text: str) -> str:
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")

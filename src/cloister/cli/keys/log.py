"""``cloister keys audit``: the log of every release and refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cloister.cli.keys.access import Folder, clock, keys_settings
from cloister.cli.options import ConfigFile, Json, now
from cloister.cli.output import console, fields_table, shorten, show_json

audit = typer.Typer(help="The hash-chained log of every release and refusal.")


@audit.command("verify")
def verify_log(
    config: ConfigFile = None,
    folder: Folder = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Check this exported file instead of the database.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="The broker's audit.pub; without it, the one in its folder.")
    ] = None,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option("--checkpoints", help="An earlier export: the log must still hold what it held then."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the whole chain: an edited, removed, reordered or cut-off line is found."""
    from cloister.kbs.audit import read_audit_key, verify_audit_log
    from cloister.kbs.audit_file import read_checkpoints, verify_export_file

    settings = keys_settings(config, folder)
    kept = [checkpoint for path in checkpoints or () for checkpoint in read_checkpoints(path)]
    if export is None:
        summary = verify_audit_log(settings, checkpoints=kept)
    else:
        public = read_audit_key(key or Path(settings.folder) / "audit.pub")
        summary = verify_export_file(export, public, checkpoints=kept)
    facts = {
        "entries": summary.entries,
        "releases": summary.releases,
        "refusals": summary.refusals,
        "checkpoints": summary.checkpoints,
        "head": summary.head,
    }
    if as_json:
        show_json(facts)
    else:
        console.print(fields_table("audit log verified", facts))


@audit.command("export")
def export_log(
    target: Annotated[Path, typer.Argument(help="The file to write, JSON lines; must not exist.")],
    config: ConfigFile = None,
    folder: Folder = None,
    after: Annotated[int, typer.Option(help="Begin after this entry, where an earlier export ended.")] = 0,
) -> None:
    """Write the log with signed checkpoints to a file that `audit verify --export` checks anywhere."""
    from cloister.kbs.audit_export import export_audit_log

    entries = export_audit_log(keys_settings(config, folder), target, now(), after=after)
    console.print(f"{entries} entries in {target}")


@audit.command("show")
def show_log(config: ConfigFile = None, folder: Folder = None, as_json: Json = False) -> None:
    """Show every release and refusal, oldest first."""
    from cloister.kbs.audit import read_audit_log

    rows = read_audit_log(keys_settings(config, folder))
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
            clock(row["time"]), row["outcome"], row["resource"], shorten(row["evidence"], 20), row["reason"]
        )
    console.print(table)

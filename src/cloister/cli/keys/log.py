"""``cloister keys audit``: the log of every release and refusal."""

from __future__ import annotations

import typer
from rich.table import Table

from cloister.cli.keys.access import Folder, clock, keys_settings
from cloister.cli.options import ConfigFile, Json
from cloister.cli.output import console, fields_table, shorten, show_json

audit = typer.Typer(help="The hash-chained log of every release and refusal.")


@audit.command("verify")
def verify_log(config: ConfigFile = None, folder: Folder = None, as_json: Json = False) -> None:
    """Check the whole chain: an edited, removed or reordered line is found."""
    from cloister.kbs.audit import verify_audit_log

    summary = verify_audit_log(keys_settings(config, folder))
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

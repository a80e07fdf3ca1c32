"""``cloister keys backup``: copies of a broker, and a broker from a copy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.keys.access import Folder, keys_settings
from cloister.cli.options import ConfigFile, Json, now
from cloister.cli.output import console, fields_table, show_json

if TYPE_CHECKING:
    from cloister.kbs.backup_archive import BackupSummary

backup = typer.Typer(help="Back a broker up while it runs, and make a broker from a backup.")


@backup.command("create")
def create(
    target: Annotated[Path, typer.Argument(help="The archive to write; must not exist.")],
    config: ConfigFile = None,
    folder: Folder = None,
    with_kek: Annotated[
        bool, typer.Option("--with-kek", help="Put the KEK in too: whoever has the archive has every key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write database, signing keys and certificate of one moment into an archive; the broker may run."""
    from cloister.kbs.backup import back_up

    _show("backup", back_up(keys_settings(config, folder), target, now(), include_kek=with_kek), as_json)


@backup.command("restore")
def restore(
    archive: Annotated[Path, typer.Argument(help="An archive of `cloister keys backup create`.")],
    config: ConfigFile = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Make a broker from an archive, in a folder and a database that have none."""
    from cloister.kbs.backup import restore as restore_backup

    _show("restored", restore_backup(keys_settings(config, folder), archive), as_json)


def _show(title: str, summary: BackupSummary, as_json: bool) -> None:
    facts = asdict(summary)
    if as_json:
        show_json(facts)
        return
    facts["keks"] = ", ".join(summary.keks) or "none"
    facts["has_kek"] = "yes" if summary.has_kek else "no"
    console.print(fields_table(title, facts))

"""``cloister keys token issue`` and ``cloister keys recovery split | combine``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.keys.access import Folder, keys_settings, read_text
from cloister.cli.options import MAX_DAYS, ConfigFile, Json, now
from cloister.cli.output import console, fields_table, say, show_json
from cloister.errors import ConfigError

token = typer.Typer(help="Bearer tokens for the broker's administration.")
recovery = typer.Typer(help="The file KEK as shares, of which some give it back.")


@token.command("issue")
def issue_token(
    role: Annotated[str, typer.Option("--role", help="admin, owner or auditor.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, for its owner only.")],
    ttl_days: Annotated[
        float, typer.Option("--ttl-days", min=0.001, max=MAX_DAYS, help="How long it lives.")
    ] = 30.0,
    config: ConfigFile = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Issue a token for a role, on the broker's own machine."""
    from cloister.kbs.admin import issue_admin_token
    from cloister.kbs.owner_files import load_or_make_ed25519, write_new

    settings = keys_settings(config, folder)
    key_file = Path(settings.folder) / "admin.key"
    if not key_file.exists():
        raise ConfigError(f"no key broker has been started in {settings.folder}")
    key = load_or_make_ed25519(key_file)
    made = issue_admin_token(key, now(), role=role, lifetime=timedelta(days=ttl_days))
    if not write_new(out, made.encode("ascii")):
        raise ConfigError(f"{out} exists already")
    facts = {"role": role, "file": str(out), "expires": (now() + timedelta(days=ttl_days)).isoformat()}
    if as_json:
        show_json(facts)
    else:
        console.print(fields_table("token issued", facts))


@recovery.command("split")
def split(
    threshold: Annotated[int, typer.Option("--threshold", "-k", help="How many shares give the KEK back.")],
    shares: Annotated[int, typer.Option("--shares", "-n", help="How many shares there are.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the shares.")],
    config: ConfigFile = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Split the KEK of a file or a TPM; hand each share to somebody else, and remove the folder."""
    from cloister.kbs.kek import FileKek, open_kek
    from cloister.kbs.kek.file import file_key_id
    from cloister.kbs.owner_files import make_folder, write_new
    from cloister.kbs.recovery import split_kek

    settings = keys_settings(config, folder)
    provider = open_kek(settings.kek or f"file:{Path(settings.folder) / 'kek'}", make=False)
    if not isinstance(provider, FileKek):
        raise ConfigError("only a KEK in a file can be split; a token or Vault has its own recovery")
    kek = provider.newest()
    made = split_kek(kek, threshold=threshold, shares=shares)
    if out.exists():
        raise ConfigError(f"{out} exists already")
    make_folder(out)
    files = [out / f"share-{number}.txt" for number in range(1, shares + 1)]
    for file, share in zip(files, made, strict=True):
        write_new(file, share.encode("ascii") + b"\n")
    facts = {"kek": file_key_id(kek), "threshold": threshold, "shares": [str(file) for file in files]}
    say(facts, f"{shares} shares of KEK {facts['kek']} are in {out}; any {threshold} give it back", as_json)


@recovery.command("combine")
def combine(
    shares: Annotated[list[Path], typer.Argument(help="Files of shares, as many as it takes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="KEK file to write; it must not exist.")],
    as_json: Json = False,
) -> None:
    """Put the KEK together again; compare its name with that which `split` showed."""
    from cloister.kbs.kek.file import file_key_id
    from cloister.kbs.owner_files import make_folder, write_new
    from cloister.kbs.recovery import combine_kek

    kek = combine_kek([read_text(share) for share in shares])
    make_folder(out.parent)
    if not write_new(out, kek.raw):
        raise ConfigError(f"{out} exists already")
    facts = {"kek": file_key_id(kek), "file": str(out)}
    say(facts, f"KEK {facts['kek']} is in {out}", as_json)

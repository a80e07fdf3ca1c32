"""``cloister keys add | list | show | delete | revoke | restore | minimum | rotate``."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cloister.cli.keys.access import (
    AdminToken,
    BrokerCa,
    BrokerUrl,
    Folder,
    Reach,
    administrator,
    clock,
    local_admin,
    reaches_broker,
)
from cloister.cli.options import ConfigFile, Json
from cloister.cli.output import console, fields_table, say, show_json
from cloister.errors import ConfigError

MAX_SECRET_BYTES = 1 << 20
KEY_BYTES = 32
Uri = Annotated[str, typer.Argument(help="kbs:///repository/type/tag, where it may be with ?version=n.")]


@reaches_broker
def add(
    reach: Reach,
    uri: Uri,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", help="Secret to store; - reads standard input.")
    ] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Store 32 random bytes.")] = False,
    as_json: Json = False,
) -> None:
    """Store a secret as the newest version of a resource."""
    if (from_file is None) == (not generate):
        raise ConfigError("give either --from-file or --generate")
    data = secrets.token_bytes(KEY_BYTES) if from_file is None else _secret(from_file)
    with reach() as admin:
        version = admin.put_version(uri, data)
    say({"uri": uri, "version": version}, f"stored {uri} as version {version}", as_json)


@reaches_broker
def list_keys(
    reach: Reach,
    as_json: Json = False,
) -> None:
    """List what the broker holds: names and versions, never a key."""
    with reach() as admin:
        rows = admin.list_resources()
    if as_json:
        show_json(rows)
        return
    table = Table("resource", "version", "bytes", "created", title="resources", title_justify="left")
    for row in rows:
        table.add_row(row["uri"], str(row["version"]), str(row["bytes"]), row["created"])
    console.print(table)


@reaches_broker
def show(
    reach: Reach,
    uri: Uri,
    as_json: Json = False,
) -> None:
    """Show a resource's versions: which are released, which are too old or revoked, under which KEK."""
    with reach() as admin:
        facts = admin.show_resource(uri)
    if as_json:
        show_json(facts)
        return
    table = Table(title=f"{facts['uri']}, released from version {facts['minimum_version'] or 1}")
    for name in ("version", "bytes", "created", "kek", "standing"):
        table.add_column(name, overflow="fold")
    for version in facts["versions"]:
        created = clock(version["created"])
        row = (str(version["version"]), str(version["bytes"]), created, version["kek"], version["standing"])
        table.add_row(*row)
    console.print(table)


@reaches_broker
def delete(
    reach: Reach,
    uri: Uri,
    as_json: Json = False,
) -> None:
    """Delete a resource, or one version of it. What only it opens is lost."""
    with reach() as admin:
        admin.delete_resource(uri)
    say({"uri": uri}, f"deleted {uri}", as_json)


@reaches_broker
def revoke(
    reach: Reach,
    uri: Uri,
    reason: Annotated[str, typer.Option("--reason", help="Told to every TEE that asks, and recorded.")],
    as_json: Json = False,
) -> None:
    """Release a resource, or one version of it, to nobody from the next request on."""
    with reach() as admin:
        admin.revoke(uri, reason)
    say({"uri": uri, "reason": reason}, f"revoked {uri}", as_json)


@reaches_broker
def restore(
    reach: Reach,
    uri: Uri,
    reason: Annotated[str, typer.Option("--reason", help="Recorded.")] = "",
    as_json: Json = False,
) -> None:
    """Take a revocation back."""
    with reach() as admin:
        admin.restore(uri, reason)
    say({"uri": uri}, f"restored {uri}", as_json)


@reaches_broker
def minimum(
    reach: Reach,
    uri: Uri,
    version: Annotated[int, typer.Argument(min=0, help="Oldest version to release; 0 for any.")],
    as_json: Json = False,
) -> None:
    """Set the oldest version that is released; sealing a newer one has raised it already."""
    with reach() as admin:
        before = admin.set_minimum(uri, version)
    facts = {"uri": uri, "before": before, "minimum": version}
    say(facts, f"{uri}: released from version {version}, before from {before}", as_json)


def rotate(
    uri: Annotated[
        str | None, typer.Argument(help="Key whose container is sealed anew; none with --kek.")
    ] = None,
    kek: Annotated[bool, typer.Option("--kek", help="Rotate the key-encrypting key instead.")] = False,
    renew: Annotated[
        bool, typer.Option(help="With --kek: make a new one first; --no-renew if keys.kek names another.")
    ] = True,
    retire: Annotated[
        bool, typer.Option(help="With --kek: forget the old one; older backups need a copy of it.")
    ] = True,
    container: Annotated[
        Path | None, typer.Option("--container", help="Sealed container of the key.")
    ] = None,
    signer: Annotated[Path | None, typer.Option("--signer", help="Ed25519 key file that signs.")] = None,
    store: Annotated[Path | None, typer.Option("--store", help="Model store for the new one.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the new one instead.")] = None,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Let the container that was go on to be opened.")
    ] = False,
    config: ConfigFile = None,
    folder: Folder = None,
    broker: BrokerUrl = None,
    admin_token: AdminToken = None,
    broker_ca: BrokerCa = None,
    as_json: Json = False,
) -> None:
    """Wrap every key under a new KEK (--kek), or seal one container anew under a new data key."""
    if kek == (uri is not None):
        raise ConfigError("give either a key's URI or --kek")
    if kek:
        with administrator(config, folder, broker, admin_token, broker_ca) as admin:
            facts = admin.rotate_kek(renew=renew, retire=retire)
        say(facts, f"{facts['rewrapped']} data keys are now under {facts['kek_id']}", as_json)
        return
    if broker is not None:
        raise ConfigError("a container is sealed anew on the broker's own machine: its key has to be read")
    if container is None or signer is None or (store is None) == (out is None):
        raise ConfigError("sealing anew needs --container, --signer, and either --store or --out")
    _reseal(str(uri), container, signer, store, out, keep_old, config, folder, as_json)


def _reseal(
    uri: str,
    container: Path,
    signer: Path,
    store: Path | None,
    out: Path | None,
    keep_old: bool,
    config: Path | None,
    folder: str | None,
    as_json: bool,
) -> None:
    from cloister.crypto.keys import SecretKey
    from cloister.kbs.owner import reseal_model
    from cloister.kbs.protocol import ResourcePath
    from cloister.seal.container import read_header
    from cloister.seal.signing import SigningKey, TrustedSigners

    key_of_owner = SigningKey.load(signer)
    trusted = TrustedSigners([key_of_owner.public])
    try:
        with container.open("rb") as file:
            header = read_header(file, trusted).header
    except OSError as error:
        raise ConfigError(f"cannot read {container}: {error.strerror}") from error
    if header.key != uri:
        raise ConfigError(f"{container} is sealed under {header.key}, not under {uri}")
    path = ResourcePath.from_uri(f"{uri}?version={header.key_version}")
    with local_admin(config, folder) as admin:
        key = SecretKey(admin.administration.take_key(path, f"sealed anew: {header.name} {header.version}"))
        made = reseal_model(
            container,
            key=key,
            admin=admin,
            signer=key_of_owner,
            trusted=trusted,
            store=store,
            out=out,
            keep_old=keep_old,
        )
    facts = {"container": str(made), "key": uri, "sequence": header.sequence + 1}
    if as_json:
        show_json(facts)
    else:
        console.print(fields_table("sealed anew", facts))


def _secret(path: Path) -> bytes:
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_SECRET_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if not data or len(data) > MAX_SECRET_BYTES:
        raise ConfigError(f"a secret has 1 to {MAX_SECRET_BYTES} bytes")
    return data

"""``cloister seal | inspect``: the model owner's side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cloister.cli.options import Json
from cloister.cli.output import console, errors, fields_table, show_json
from cloister.errors import ConfigError


def seal(
    source: Annotated[Path, typer.Argument(help="What to seal: a .mar archive, safetensors or any file.")],
    name: Annotated[str, typer.Option("--name", help="Model name.")],
    version: Annotated[str, typer.Option("--version", help="Model version.")],
    signer: Annotated[
        Path, typer.Option("--signer", help="Ed25519 key file that signs; made if it does not exist.")
    ],
    broker: Annotated[str, typer.Option("--broker", help="Key broker that keeps the data key.")],
    admin_token: Annotated[Path, typer.Option("--admin-token", help="File with the broker's admin token.")],
    broker_ca: Annotated[
        Path | None, typer.Option("--broker-ca", help="PEM certificate of the broker.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Model store to add the container to.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Container to write instead.")] = None,
    key: Annotated[
        str,
        typer.Option("--key", help="Where the broker keeps the key; made from name and version if empty."),
    ] = "",
    sequence: Annotated[
        int, typer.Option("--sequence", min=0, help="Rises with every release; lower ones are refused.")
    ] = 1,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Let containers under older versions of the key go on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Encrypt and sign a model; its new data key goes to the broker and nowhere else."""
    from cloister.kbs.client import BrokerAdmin
    from cloister.kbs.owner import SealRequest, load_or_create_signer, seal_model

    if (store is None) == (out is None):
        raise ConfigError("give either --store or --out")
    request = SealRequest(
        source=source,
        name=name,
        version=version,
        sequence=sequence,
        key_uri=key or f"kbs:///models/{name}/{version}",
        keep_old=keep_old,
    )
    signing_key = load_or_create_signer(signer)
    columns = (TextColumn("sealing"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        BrokerAdmin(broker, token=_read_token(admin_token), ca=broker_ca) as admin,
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress,
    ):
        task = progress.add_task("sealing", total=_size(source))
        container = seal_model(
            request,
            admin=admin,
            signer=signing_key,
            store=store,
            out=out,
            progress=lambda done: progress.update(task, completed=done),
        )
    facts = {"container": str(container), "key": request.key_uri, "signer": signing_key.public}
    if as_json:
        show_json(facts)
    else:
        console.print(fields_table("sealed", facts))


def inspect(
    container: Annotated[Path, typer.Argument(help="Sealed container.")],
    trusted_signers: Annotated[
        Path | None, typer.Option("--trusted-signers", help="File of accepted signers; checks the signature.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a sealed container's header; no key is needed."""
    from cloister.seal.container import claimed_signer, read_header
    from cloister.seal.reader import container_digest
    from cloister.seal.signing import TrustedSigners

    _size(container)
    with container.open("rb") as file:
        if trusted_signers is None:
            trusted = TrustedSigners([claimed_signer(file)])
        else:
            trusted = TrustedSigners.from_file(trusted_signers)
        header = read_header(file, trusted).header
    facts = {
        **asdict(header),
        "container_digest": container_digest(container),
        "signer_trusted": "yes" if trusted_signers else "not checked; give --trusted-signers",
    }
    if as_json:
        show_json(facts)
    else:
        console.print(fields_table(str(container), facts))


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the admin token {path}: {error}") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error

"""``cloister access``: who may call which model: policies to try out, API keys to hand out."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cloister.cli.options import MAX_DAYS, Json, now
from cloister.cli.output import console, fields_table, show_json
from cloister.errors import ConfigError

app = typer.Typer(help="Who may call which model: try policies out, hand out API keys.", no_args_is_help=True)
keys = typer.Typer(help="API keys; the file holds their hashes only.", no_args_is_help=True)
app.add_typer(keys, name="key")

KeyFile = Annotated[Path, typer.Option("--file", "-f", help="File of API keys, as serve.api_keys names it.")]


@app.command("test")
def explain(
    policy: Annotated[Path, typer.Argument(help="Cedar policy file.")],
    model: Annotated[str, typer.Option(help="Model name, or NAME/VERSION.")] = "",
    action: Annotated[str, typer.Option(help="predict, explain, describe, manage or metrics.")] = "predict",
    way: Annotated[str, typer.Option(help="sealed, tls or open.")] = "sealed",
    kind: Annotated[str, typer.Option(help="anonymous, jwt, api-key, mtls or token.")] = "anonymous",
    subject: Annotated[str, typer.Option(help="The caller's name in its credential.")] = "",
    issuer: Annotated[str, typer.Option(help="Issuer of a JWT.")] = "",
    tenant: Annotated[str, typer.Option(help="Whom the caller belongs to.")] = "",
    group: Annotated[list[str] | None, typer.Option(help="A group that it is in; may be repeated.")] = None,
    certificate: Annotated[str, typer.Option(help="Name of the client certificate, if TLS has one.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="A scope of a JWT; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a policy decides about one request, and why. Exit code 3 if it is refused."""
    from cloister.policy.requests import ACTIONS, Caller, RequestPolicy

    if action not in ACTIONS:
        raise ConfigError(f"{action[:40]!r} is not an action", hint=", ".join(ACTIONS))
    try:
        text = policy.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read policy {policy}") from error
    name, _, version = model.partition("/")
    caller = Caller(
        kind=kind,
        subject=subject,
        issuer=issuer,
        tenant=tenant,
        groups=tuple(group or ()),
        scopes=tuple(scope or ()),
    )
    decision = RequestPolicy(text, origin=str(policy)).decide(caller, action, name, version, way, certificate)
    if as_json:
        show_json(
            {
                "allowed": decision.allowed,
                "policies": list(decision.policy_ids),
                "reason": decision.reason,
            }
        )
    else:
        console.print(("allowed: " if decision.allowed else "refused: ") + decision.reason)
    if not decision.allowed:
        raise typer.Exit(3)


@app.command("audit")
def audit(
    file: Annotated[Path, typer.Argument(help="The log, as serve.decision_log names it.")],
    key: Annotated[Path | None, typer.Option("--key", help="Its public key; default: FILE.pub.")] = None,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option("--checkpoints", help="An earlier copy: the log must still hold what it held then."),
    ] = None,
    running: Annotated[
        bool,
        typer.Option("--running", help="Accept a last batch that is not whole, as after a crash."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the log of decisions and the files that it went on from: nothing edited, removed or cut off."""
    from cloister.kbs.audit import read_audit_key
    from cloister.kbs.audit_file import read_checkpoints
    from cloister.serve.access.decision_file import verify_decisions

    public = read_audit_key(key or file.with_name(file.name + ".pub"))
    kept = [checkpoint for path in checkpoints or () for checkpoint in read_checkpoints(path)]
    facts = asdict(verify_decisions(file, public, checkpoints=kept, running=running))
    if as_json:
        show_json(facts)
    else:
        console.print(fields_table("log of decisions verified", facts))


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whom the key is for; policies see it as principal.subject.")],
    file: KeyFile = Path("api-keys.jsonl"),
    tenant: Annotated[str, typer.Option(help="The tenant that it belongs to.")] = "",
    group: Annotated[list[str] | None, typer.Option(help="A group that it is in; may be repeated.")] = None,
    days: Annotated[
        float | None,
        typer.Option(min=0.001, max=MAX_DAYS, help="Days until it expires; never if not given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: the only time that anybody sees it."""
    from cloister.serve.access.api_keys import make_api_key

    moment = now()
    expires = None if days is None else moment + timedelta(days=days)
    key = make_api_key(file, name, now=moment, tenant=tenant, groups=tuple(group or ()), expires=expires)
    if as_json:
        show_json({"name": name, "key": key})
    else:
        typer.echo(key)


@keys.command("list")
def list_keys(file: KeyFile = Path("api-keys.jsonl"), as_json: Json = False) -> None:
    """Show whose keys there are."""
    from cloister.serve.access.api_keys import read_api_keys

    records = list(read_api_keys(file).values())
    if as_json:
        show_json(
            [
                {
                    "name": record.name,
                    "tenant": record.tenant,
                    "groups": list(record.groups),
                    "created": record.created,
                    "expires": record.expires,
                }
                for record in records
            ]
        )
        return
    table = Table("name", "tenant", "groups", "created", "expires")
    for record in records:
        table.add_row(
            record.name, record.tenant, ", ".join(record.groups), record.created, record.expires or "never"
        )
    console.print(table)


@keys.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Whose key.")], file: KeyFile = Path("api-keys.jsonl")
) -> None:
    """Remove a key; a running server refuses it within a few seconds."""
    from cloister.serve.access.api_keys import remove_api_key

    remove_api_key(file, name)

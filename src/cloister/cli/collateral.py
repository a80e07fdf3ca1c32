"""``cloister collateral``: obtain, look at and bundle what vendors say of their hardware."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cloister.cli.options import ConfigFile, Json, now
from cloister.cli.output import console, show_json
from cloister.cli.serve import effective_settings
from cloister.errors import ConfigError

if TYPE_CHECKING:
    from cloister.attest.collateral import Entry, Wanted

app = typer.Typer(help="What vendors say of their hardware: TCB levels, certificates, revocation lists.")

Scheme = Annotated[
    str | None, typer.Option(help="Kind of evidence; left out, quotes and reports are told apart.")
]


@app.command("fetch")
def fetch(
    evidence: Annotated[Path | None, typer.Argument(help="File with a quote or report.")] = None,
    scheme: Scheme = None,
    fmspc: Annotated[str | None, typer.Option(help="Intel: FMSPC, instead of a quote.")] = None,
    ca: Annotated[str, typer.Option(help="Intel: CA of the PCK certificate, platform or processor.")] = (
        "platform"
    ),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the endorsements, JSON.")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Obtain collateral from Intel or AMD (or the cache), for a quote, a report or an FMSPC."""
    from cloister.attest.collateral.files import write_file
    from cloister.attest.collateral.obtain import find_entry, vendor_sources

    wanted = _wanted(evidence, scheme, fmspc, ca)
    settings = effective_settings(config, {}).collateral
    moment = now()
    entry = find_entry(wanted, vendor_sources(settings, os.environ), moment)
    if out is not None:
        write_file(out, json.dumps(entry.endorsements.to_mapping(), indent=1).encode() + b"\n")
    if as_json:
        show_json(_described(entry, moment) | {"endorsements": entry.endorsements.to_mapping()})
        return
    console.print(_table([entry], moment, f"collateral from {entry.source}"))
    if out is not None:
        console.print(f"wrote {out}")


@app.command("show")
def show(
    file: Annotated[Path | None, typer.Argument(help="Bundle, or endorsements of one platform.")] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Show what is in the cache.")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Show what collateral says and until when it holds. Nothing is verified."""
    from cloister.attest.collateral.cache import list_cached
    from cloister.attest.collateral.files import read_file
    from cloister.attest.collateral.obtain import cache_folder

    moment = now()
    if cache == (file is not None):
        raise ConfigError("show takes a file or --cache", hint="one of them")
    if file is None:
        folder = cache_folder(effective_settings(config, {}).collateral, os.environ)
        entries, title = list(list_cached(folder)), f"cache {folder}"
    else:
        entries, title = _read_entries(read_file(file), file, moment), str(file)
    if as_json:
        show_json([_described(entry, moment) for entry in entries])
        return
    console.print(_table(entries, moment, title))


@app.command("bundle")
def bundle(
    evidence: Annotated[list[Path], typer.Argument(help="Files with quotes or reports.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    scheme: Scheme = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Obtain collateral for many quotes or reports, and write one file for machines without a network."""
    from cloister.attest.collateral.entry import render_bundle
    from cloister.attest.collateral.files import write_file
    from cloister.attest.collateral.obtain import find_entry, vendor_sources

    sources = vendor_sources(effective_settings(config, {}).collateral, os.environ)
    moment = now()
    entries = [find_entry(_wanted(path, scheme, None, ""), sources, moment) for path in evidence]
    unique = list({json.dumps(dict(entry.key), sort_keys=True): entry for entry in entries}.values())
    write_file(out, render_bundle(unique))
    if as_json:
        show_json([_described(entry, moment) for entry in unique])
        return
    console.print(_table(unique, moment, str(out)))


def _wanted(evidence: Path | None, scheme: str | None, fmspc: str | None, ca: str) -> Wanted:
    from cloister.attest.collateral.files import read_file
    from cloister.attest.collateral.platform import Wanted, detect_scheme, intel_platform, read_wanted

    if (evidence is None) == (fmspc is None):
        raise ConfigError("fetch takes a file with a quote or report, or --fmspc", hint="one of them")
    if fmspc is not None:
        platform = intel_platform(scheme or "tdx", fmspc, ca)
        return Wanted(platform.scheme, (platform,))
    raw = read_file(evidence or Path())
    wanted = read_wanted(scheme or detect_scheme(raw), raw)
    if not wanted.platforms:
        raise ConfigError(f"there is no service to ask for collateral of {wanted.scheme} evidence")
    return wanted


def _read_entries(raw: bytes, path: Path, moment: datetime) -> list[Entry]:
    from cloister.attest.collateral.entry import MAX_BUNDLE_BYTES, Entry, parse_bundle, parse_json
    from cloister.attest.collateral.parts import read_platform
    from cloister.attest.verifier import parse_endorsements

    document = parse_json(raw, MAX_BUNDLE_BYTES, str(path))
    if "bundle" in document:
        return list(parse_bundle(raw))
    scheme = "tdx" if "tcb_info" in document else "sev-snp"
    endorsements = parse_endorsements(scheme, document)
    return [Entry(read_platform(endorsements), endorsements, moment, str(path))]


def _described(entry: Entry, moment: datetime) -> dict[str, Any]:
    from cloister.attest.collateral.parts import read_parts, render_time

    return {
        "platform": dict(entry.key),
        "source": entry.source,
        "obtained": render_time(entry.obtained),
        "parts": [
            {
                "what": part.what,
                "issued": render_time(part.issued),
                "next-update": render_time(part.next_update) if part.next_update else None,
                "evaluation-data-number": part.evaluation_data_number,
                "state": part.state(moment),
            }
            for part in read_parts(entry.endorsements)
        ],
    }


def _table(entries: list[Entry], moment: datetime, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("platform", "what", "issued", "next update", "number", "state"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        name = _name(entry)
        for part in _described(entry, moment)["parts"]:
            state = Text(part["state"], "green" if part["state"] == "current" else "bold red")
            number = part["evaluation-data-number"]
            table.add_row(
                name,
                part["what"],
                part["issued"][:10],
                (part["next-update"] or "never")[:10],
                "" if number is None else str(number),
                state,
            )
            name = ""
        table.add_section()
    return table


def _name(entry: Entry) -> str:
    key = entry.key
    if "fmspc" in key:
        return " ".join(key[name] for name in ("scheme", "id", "fmspc", "ca") if name in key)
    if "product" in key:
        return f"{key['product']} {key['kind'].upper()} {key['chip_id'][:12]}"
    return key.get("scheme", "")

"""``cloister evidence``: what does this machine say of itself?"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import ConfigFile, Json, unhex
from cloister.cli.output import console, fields_table, show_json
from cloister.cli.serve import effective_settings
from cloister.errors import ConfigError
from cloister.settings import settings_digest

NONCE_BYTES = 32
REPORT_DATA_BYTES = 64


def evidence(
    nonce: Annotated[
        str | None, typer.Option(metavar="HEX", help="Nonce of whoever asks; left out, a fresh one.")
    ] = None,
    report_data: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The bytes to bind, at most 64, instead of a nonce; zero-padded."),
    ] = None,
    attester: Annotated[
        str | None, typer.Option(help="auto, or one by its name: see attest.attester.")
    ] = None,
    simulated_platform: Annotated[str | None, typer.Option(help="Folder of a simulated platform.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the file there, not to standard output."),
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Print this machine's own evidence as a file that `cloister verify` takes."""
    from cloister.attest.attester import pick_attester
    from cloister.attest.binding import report_data_for
    from cloister.attest.evidence_file import make_evidence_file, nonce_data

    if nonce is not None and report_data is not None:
        raise ConfigError("--nonce and --report-data exclude each other")
    flags = {"attest.attester": attester, "attest.simulated_platform": simulated_platform}
    settings = effective_settings(config, dict(flags))
    runtime_data = None
    if report_data is None:
        own = secrets.token_bytes(NONCE_BYTES) if nonce is None else unhex(nonce, "--nonce", 64)
        runtime_data = nonce_data(own)
        bound = report_data_for(runtime_data)
    else:
        bound = unhex(report_data, "--report-data", REPORT_DATA_BYTES).ljust(REPORT_DATA_BYTES, b"\x00")
    source = pick_attester(settings.attest, mr_config_id=settings_digest(settings))
    made = source.get_evidence(bound)
    file = make_evidence_file(made, source.get_endorsements(), runtime_data)
    if out is None:
        typer.echo(file.to_json(), nl=False)
        return
    try:
        out.write_text(file.to_json())
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    summary = {
        "scheme": made.scheme,
        "attester": type(source).__name__,
        "evidence": f"{len(made.raw)} bytes",
        "endorsements": "with it" if file.endorsements is not None else "none; a verifier obtains them",
        "report_data": bound.hex(),
        "file": os.fspath(out),
    }
    if as_json:
        show_json(summary)
    else:
        console.print(fields_table("this machine's evidence", summary))

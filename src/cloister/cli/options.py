"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML settings file; flags and environment win over it.")
]
ReferenceFile = Annotated[
    Path | None,
    typer.Option(
        "--reference-values",
        "-r",
        envvar="CLOISTER_REFERENCE_VALUES",
        help="TOML file that says which TEE is acceptable.",
    ),
]
SimulatedRoot = Annotated[
    Path | None,
    typer.Option(
        "--simulated-root",
        envvar="CLOISTER_SIMULATED_ROOT",
        help="PEM root of a simulated platform. It proves nothing about hardware: tests and demos only.",
    ),
]


def trusted_roots(simulated_root: Path | None) -> Sequence[x509.Certificate] | None:
    """The roots to verify against: None means the vendors', a simulated root replaces them."""
    if simulated_root is None:
        return None
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(simulated_root.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the simulated root {simulated_root}: {error}") from error


def now() -> datetime:
    """The clock, read at the edge and handed inward."""
    return datetime.now(UTC)

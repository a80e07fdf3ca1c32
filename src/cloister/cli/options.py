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

MAX_DAYS = 36_500
"""Longest life of a credential that is given in days: a hundred years."""
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
ModelDigests = Annotated[
    list[str] | None,
    typer.Option(
        "--model-digest",
        metavar="[NAME[/VERSION]=]SHA256",
        help="Demand this container digest of the model, of all if none is named; may be repeated.",
    ),
]
ModelSigners = Annotated[
    list[str] | None,
    typer.Option(
        "--model-signer",
        metavar="[NAME[/VERSION]=]SIGNER",
        help="Demand this signer of the model, of all if none is named; may be repeated.",
    ),
]
PolicyDigests = Annotated[
    list[str] | None,
    typer.Option(
        "--policy-digest",
        metavar="SHA384",
        help="Demand this access policy, by the SHA-384 of its file; may be repeated.",
    ),
]

TensorName = Annotated[
    str, typer.Option(metavar="NAME", help="Input that a .npy file is, if the model declares none.")
]
AsFiles = Annotated[
    bool, typer.Option("--as-files", help="Send .npy and .npz files as they are, not as tensors.")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with an API key or a JSON Web Token; it travels sealed.")
]


def trusted_roots(simulated_root: Path | None) -> Sequence[x509.Certificate] | None:
    """The roots to verify against: None means the vendors', a simulated root replaces them."""
    if simulated_root is None:
        return None
    from cryptography import x509

    from cloister.crypto.certificates import UNREADABLE

    try:
        return x509.load_pem_x509_certificates(simulated_root.read_bytes())
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(f"cannot read the simulated root {simulated_root}: {error}") from error


def unhex(text: str, what: str, limit: int) -> bytes:
    """The bytes of a hexadecimal option; at least one and at most ``limit``."""
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"{what} is not hexadecimal") from error
    if not 0 < len(raw) <= limit:
        raise ConfigError(f"{what} has {len(raw)} bytes, expected 1 to {limit}")
    return raw


def moment(text: str | None) -> datetime:
    """An RFC 3339 time with its offset from UTC; None means now."""
    if text is None:
        return now()
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{text[:40]!r} is no RFC 3339 time", hint="such as 2026-06-01T12:00:00Z"
        ) from error
    if found.tzinfo is None:
        raise ConfigError(f"{text[:40]!r} has no offset from UTC", hint="end it with Z for UTC")
    return found


def now() -> datetime:
    """The clock, read at the edge and handed inward."""
    return datetime.now(UTC)


def read_token(path: Path | None) -> str:
    """The credential of a file; empty without one."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read a token from {path}") from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(f"{path} does not hold one token")
    return token

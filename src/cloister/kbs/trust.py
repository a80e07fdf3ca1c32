"""What a releaser of keys trusts, from its settings: reference values, endorsements, a simulated root."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.model import Endorsements
from cloister.attest.verifier import SCHEMES, parse_endorsements
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import ConfigError
from cloister.kbs.reload import ReloadedFile


def reference_source(file: str) -> Callable[[], ReferenceValues]:
    """The reference values in a file as they are at each call; without a file every call is a ConfigError."""
    if file:
        source = ReloadedFile(Path(file), ReferenceValues.from_toml)
        source.get()
        return source.get

    def none() -> ReferenceValues:
        raise ConfigError("no reference values are configured: every attestation is refused")

    return none


def endorsements_source(file: str) -> Callable[[str], Endorsements | None]:
    """The endorsements in a JSON file for a scheme, as they are at each call; None where it has none.

    The file holds those of one kind of TEE, or an object by scheme for several:
    ``{"tdx": {...}, "sev-snp": {...}}``.
    """
    if not file:
        return lambda _scheme: None
    source = ReloadedFile(Path(file), _json_object)
    source.get()

    def find(scheme: str) -> Endorsements | None:
        document = source.get()
        if not document.keys() <= SCHEMES.keys():
            return parse_endorsements(scheme, document)
        found = document.get(scheme)
        return None if found is None else parse_endorsements(scheme, found)

    return find


def read_simulated_root(file: str) -> x509.Certificate | None:
    """The root of a simulated platform; None without a file, as in production."""
    if not file:
        return None
    try:
        return x509.load_pem_x509_certificate(Path(file).read_bytes())
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(f"cannot read a certificate from {file}") from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return document

"""Init data: configuration that the host hands to a TEE at launch, and whose digest the hardware reports.

The digest is over the bytes as they are sent, by the algorithm that they name themselves, cut or padded with
zeros to the length of the field:

============== ================== =====
TEE            field              bytes
============== ================== =====
tdx            ``mr_config_id``   48
snp            ``host_data``      32
sgx            ``config_id``      64
TPM, Azure     PCR 8, SHA-256     32    extended once with the digest, from zero
============== ================== =====

What a policy may rely on is only what was bound: init data whose digest is not in the evidence is a refusal,
and so is init data of a TEE that has no such field.

Source: Trustee, kbs/docs/initdata.md; deps/verifier, ``az_snp_vtpm``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest.model import Claims
from cloister.errors import BindingMismatch, MalformedInput
from cloister.kbs.protocol import InitData

VERSION = "0.1.0"
MAX_BODY_CHARACTERS = 1 << 18
_FIELDS = {"tdx": ("mr_config_id", 48), "sev-snp": ("host_data", 32), "sgx": ("config_id", 64)}
_WITH_PCRS = frozenset({"tpm", "az-snp-vtpm", "az-tdx-vtpm"})
_PCR = 8
_ALGORITHMS = ("sha256", "sha384", "sha512")


@dataclass(frozen=True, slots=True)
class BoundInitData:
    """Init data that the hardware vouches for."""

    digest: str
    """Of the whole body by its own algorithm, hexadecimal, not cut."""
    entries: Mapping[str, str]
    """The table ``data``: file name and content."""

    def claims(self) -> dict[str, Any]:
        """As Trustee shows it to policies: TOML and JSON files parsed, others as text."""
        return {name: _parsed(name, text) for name, text in self.entries.items()}


def check_init_data(sent: InitData, claims: Claims) -> BoundInitData:
    """Establish that the hardware's evidence speaks of this init data.

    Raises:
        MalformedInput: not init data, or the TEE has no field for it.
        BindingMismatch: the evidence speaks of other init data, or of none.
    """
    document = _parse(sent)
    algorithm = str(document.get("algorithm")).lower().replace("-", "")
    entries = document.get("data")
    if algorithm not in _ALGORITHMS:
        raise MalformedInput(f"init data: algorithm must be one of {', '.join(_ALGORITHMS)}")
    if document.get("version") != VERSION:
        raise MalformedInput(f"init data: version must be {VERSION}")
    if not isinstance(entries, dict) or not all(isinstance(text, str) for text in entries.values()):
        raise MalformedInput("init data: data must be a table of texts")
    digest = hashlib.new(algorithm, sent.body.encode("utf-8")).digest()
    name, found, expected = _reported(claims, digest)
    if not hmac.compare_digest(found, expected):
        raise BindingMismatch(
            f"init data is not what the TEE was started with: {name} is {found.hex()[:16]}…,"
            f" this init data needs {expected.hex()[:16]}…"
        )
    return BoundInitData(digest.hex(), entries)


def _reported(claims: Claims, digest: bytes) -> tuple[str, bytes, bytes]:
    """Where the hardware reports a digest, what it reports, and what it would report for this one."""
    if claims.scheme in _FIELDS:
        name, length = _FIELDS[claims.scheme]
        return name, getattr(claims, name), digest[:length].ljust(length, b"\x00")
    if claims.scheme in _WITH_PCRS:
        pcrs: Mapping[str, Mapping[int, bytes]] = getattr(claims, "pcrs", {})
        extended = hashlib.sha256(bytes(32) + digest[:32].ljust(32, b"\x00")).digest()
        return f"PCR {_PCR}", pcrs.get("sha256", {}).get(_PCR, b""), extended
    raise MalformedInput(f"init data: evidence of scheme {claims.scheme} has no field for its digest")


def _parse(sent: InitData) -> dict[str, Any]:
    if len(sent.body) > MAX_BODY_CHARACTERS:
        raise MalformedInput(f"init data: at most {MAX_BODY_CHARACTERS} characters")
    if sent.format not in ("toml", "json"):
        raise MalformedInput(f"init data: format must be toml or json, found {sent.format[:20]!r}")
    try:
        document = tomllib.loads(sent.body) if sent.format == "toml" else json.loads(sent.body)
        sent.body.encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"init data: not {sent.format.upper()}") from error
    if not isinstance(document, dict):
        raise MalformedInput("init data: not an object")
    return document


def _parsed(name: str, text: str) -> Any:
    try:
        if name.endswith(".toml"):
            return json.loads(json.dumps(tomllib.loads(text), default=str))
        if name.endswith(".json"):
            return json.loads(text)
    except (ValueError, RecursionError):
        pass  # The guest would not read it either; policies see the text.
    return text

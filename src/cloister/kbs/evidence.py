"""The wire forms of evidence in the key release protocol, both ways, and their schemes of verification.

============== ============ ================================================================
``tee``        scheme       ``primary_evidence``
============== ============ ================================================================
tdx            tdx          ``{"cc_eventlog": base64 or null, "quote": base64}``
sgx            sgx          ``{"quote": base64}``
snp            sev-snp      ``{"attestation_report": {...}, "cert_chain": [...] or null}``
az-snp-vtpm    the same     Azure's parts; the JSON is the evidence
az-tdx-vtpm    the same     as above
tpm            tpm          as above
sample         none         ``{"svn", "report_data"}``: ``cloister.kbs.sample``
============== ============ ================================================================

Source: guest-components, ``attestation-agent/attester``; Trustee, ``deps/verifier``.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest.model import Endorsements
from cloister.attest.snp.trustee import parse_trustee_evidence, render_trustee_evidence
from cloister.errors import MalformedInput

MAX_EVENT_LOG_CHARACTERS = 1 << 19


@dataclass(frozen=True, slots=True)
class WireEvidence:
    """Vendor's evidence out of a message."""

    scheme: str
    raw: bytes
    endorsements: Endorsements | None = None
    """Endorsements that came along; signed by the vendor, so the sender cannot lie with them."""


@dataclass(frozen=True, slots=True)
class _Shape:
    scheme: str
    read: Callable[[Any], tuple[bytes, Endorsements | None]]
    write: Callable[[bytes], dict[str, Any]]


def read_evidence(tee: str, primary: Any) -> WireEvidence:
    """The vendor's own bytes inside ``primary_evidence``.

    Raises:
        MalformedInput: a TEE whose evidence is not accepted, or evidence in another shape.
    """
    shape = _SHAPES.get(tee)
    if shape is None:
        raise MalformedInput(f"evidence of TEE {tee[:20]!r} is not accepted")
    return WireEvidence(shape.scheme, *shape.read(primary))


def write_evidence(scheme: str, raw: bytes) -> dict[str, Any]:
    """The wire form of a vendor's bytes: inverse of ``read_evidence``."""
    return _SHAPES[tee_of_scheme(scheme)].write(raw)


def tee_of_scheme(scheme: str) -> str:
    """The protocol's name for the TEE of a scheme.

    Raises:
        MalformedInput: the protocol has none.
    """
    for tee, shape in _SHAPES.items():
        if shape.scheme == scheme:
            return tee
    raise MalformedInput(f"the key release protocol has no form for evidence of scheme {scheme[:20]!r}")


def _read_quote(primary: Any) -> tuple[bytes, Endorsements | None]:
    if not isinstance(primary, Mapping) or not isinstance(primary.get("quote"), str):
        raise MalformedInput("primary_evidence: 'quote' is missing")
    log = primary.get("cc_eventlog")
    if log is not None and (not isinstance(log, str) or len(log) > MAX_EVENT_LOG_CHARACTERS):
        raise MalformedInput("primary_evidence: 'cc_eventlog' is not text, or too long")
    try:
        return base64.b64decode(primary["quote"], validate=True), None
    except (binascii.Error, ValueError) as error:
        raise MalformedInput("primary_evidence: 'quote' is not base64") from error


def _read_snp(primary: Any) -> tuple[bytes, Endorsements | None]:
    report, endorsements = parse_trustee_evidence(primary)
    return report, endorsements


def _read_json(primary: Any) -> tuple[bytes, Endorsements | None]:
    if not isinstance(primary, Mapping):
        raise MalformedInput("primary_evidence is not a JSON object")
    return json.dumps(primary, separators=(",", ":")).encode("utf-8", "surrogatepass"), None


def _write_json(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("evidence is not JSON") from error
    if not isinstance(document, dict):
        raise MalformedInput("evidence is not a JSON object")
    return document


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


_SHAPES: dict[str, _Shape] = {
    "tdx": _Shape("tdx", _read_quote, lambda raw: {"cc_eventlog": None, "quote": _b64(raw)}),
    "sgx": _Shape("sgx", _read_quote, lambda raw: {"quote": _b64(raw)}),
    "snp": _Shape("sev-snp", _read_snp, render_trustee_evidence),
    "az-snp-vtpm": _Shape("az-snp-vtpm", _read_json, _write_json),
    "az-tdx-vtpm": _Shape("az-tdx-vtpm", _read_json, _write_json),
    "tpm": _Shape("tpm", _read_json, _write_json),
}

"""Evidence in a file: one JSON object, as ``cloister evidence`` writes it and ``cloister verify`` reads it.

==================== ====================================================================================
member               content
==================== ====================================================================================
``scheme``           key of the verifier's table, for example ``tdx``
``evidence``         standard base64 of the vendor's bytes
``endorsements``     the vendor's, as the Attester holds them (``from_mapping`` of the scheme's class), or
                     null; optional
``runtime-data``     what ``report_data`` binds (``cloister.attest.binding``), for example
                     ``{"nonce": base64}``, or null: ``report_data`` was given as it is; optional
==================== ====================================================================================
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest.model import Endorsements, Evidence
from cloister.errors import MalformedInput

MAX_FILE_BYTES = 4 << 20
_REQUIRED = {"scheme", "evidence"}
_OPTIONAL = {"endorsements", "runtime-data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceFile:
    """The parts of such a file; nothing in it has been verified."""

    evidence: Evidence
    endorsements: Mapping[str, Any] | None = None
    runtime_data: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """The file's content."""
        document = {
            "scheme": self.evidence.scheme,
            "evidence": base64.b64encode(self.evidence.raw).decode("ascii"),
            "endorsements": self.endorsements,
            "runtime-data": self.runtime_data,
        }
        return json.dumps(document, indent=1) + "\n"


def make_evidence_file(
    evidence: Evidence, endorsements: Endorsements | None, runtime_data: Mapping[str, Any] | None
) -> EvidenceFile:
    """The file of what an Attester gave."""
    mapping = None if endorsements is None else endorsements.to_mapping()
    return EvidenceFile(evidence=evidence, endorsements=mapping, runtime_data=runtime_data)


def nonce_data(nonce: bytes) -> dict[str, str]:
    """The runtime data of evidence that speaks of nothing but a nonce."""
    return {"nonce": base64.b64encode(nonce).decode("ascii")}


def parse_document(raw: bytes) -> dict[str, Any]:
    """The JSON object in a file; MalformedInput if there is none."""
    if len(raw) > MAX_FILE_BYTES:
        raise MalformedInput(f"file has {len(raw)} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("file is not JSON") from error
    if not isinstance(document, dict):
        raise MalformedInput("file is not a JSON object")
    return document


def parse_evidence_file(document: Mapping[str, Any]) -> EvidenceFile:
    """The parts of an evidence file.

    Raises:
        MalformedInput: a member is missing, unknown or of the wrong form.
    """
    missing = sorted(_REQUIRED - set(document))
    unknown = sorted(set(document) - _REQUIRED - _OPTIONAL)
    if missing or unknown:
        raise MalformedInput(f"evidence file: missing members {missing}, unknown members {unknown[:5]!r}")
    scheme, encoded = document["scheme"], document["evidence"]
    if not isinstance(scheme, str) or not isinstance(encoded, str):
        raise MalformedInput("evidence file: scheme or evidence is not a string")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedInput("evidence file: evidence is not base64") from error
    return EvidenceFile(
        evidence=Evidence(scheme, raw),
        endorsements=_object(document, "endorsements"),
        runtime_data=_object(document, "runtime-data"),
    )


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    value = document.get(name)
    if value is not None and not isinstance(value, dict):
        raise MalformedInput(f"evidence file: {name} is not an object")
    return value

"""The payload of an attestation document, with every restriction of AWS's specification.

=============== ============== ========= ======================================================
member          type           presence  restriction
=============== ============== ========= ======================================================
module_id       text           required  not empty
digest          text           required  ``SHA384``
timestamp       integer        required  milliseconds since 1970, above 0
pcrs            map            enclave   1 to 32 entries; index 0 to 31; 32, 48 or 64 bytes each
nitrotpm_pcrs   map            NitroTPM  the same
certificate     bytes          required  1 to 1024
cabundle        array of bytes required  not empty; 1 to 1024 each; root first
public_key      bytes or null  optional  1 to 1024
user_data       bytes or null  optional  0 to 512
nonce           bytes or null  optional  0 to 512
=============== ============== ========= ======================================================

The specification says that no member is null; real documents write an absent optional one as null.

Source: AWS Nitro Enclaves attestation process, sections 2.2 and 3.2.2; NitroTPM attestation document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from cloister.attest.nitro.cbor import decode
from cloister.errors import MalformedInput

MAX_CERTIFICATE_BYTES = 1024
MAX_BUNDLE = 7
MAX_PUBLIC_KEY_BYTES = 1024
MAX_USER_BYTES = 512
MAX_PCRS = 32
PCR_LENGTHS = (32, 48, 64)
_REQUIRED = {"module_id", "digest", "timestamp", "certificate", "cabundle"}
_OPTIONAL = {"public_key", "user_data", "nonce"}
_PCRS = {"pcrs": "enclave", "nitrotpm_pcrs": "tpm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a document says, before anything of it is believed."""

    kind: str
    """``enclave`` or ``tpm``."""
    module_id: str
    digest: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    """Root first."""
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def parse_document(payload: bytes) -> Document:
    """The document in a COSE payload.

    Raises:
        MalformedInput: a member is missing, unknown, of the wrong type or length.
    """
    members = decode(payload)
    if not isinstance(members, dict):
        raise MalformedInput("attestation document is not a map")
    kinds = [name for name in _PCRS if name in members]
    if len(kinds) != 1:
        raise MalformedInput("attestation document has not exactly one of pcrs and nitrotpm_pcrs")
    known = _REQUIRED | {kinds[0]}
    missing, unknown = known - set(members), set(members) - known - _OPTIONAL
    if missing or unknown:
        raise MalformedInput(
            f"attestation document: missing members {sorted(missing)},"
            f" unknown members {sorted(map(str, unknown))[:5]}"
        )
    if members["digest"] != "SHA384":
        raise MalformedInput(f"attestation document: digest is {str(members['digest'])[:20]!r}, not SHA384")
    module_id = members["module_id"]
    if not isinstance(module_id, str) or not module_id:
        raise MalformedInput("attestation document: module_id is not a text, or empty")
    return Document(
        kind=_PCRS[kinds[0]],
        module_id=module_id,
        digest="SHA384",
        timestamp=_timestamp(members["timestamp"]),
        pcrs=_pcrs(members[kinds[0]]),
        certificate=_bytes(members["certificate"], "certificate", 1, MAX_CERTIFICATE_BYTES),
        cabundle=_cabundle(members["cabundle"]),
        public_key=_optional(members, "public_key", 1, MAX_PUBLIC_KEY_BYTES),
        user_data=_optional(members, "user_data", 0, MAX_USER_BYTES),
        nonce=_optional(members, "nonce", 0, MAX_USER_BYTES),
    )


def _timestamp(value: Any) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise MalformedInput("attestation document: timestamp is not a number above 0")
    try:
        return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise MalformedInput("attestation document: timestamp is not in this age") from error


def _pcrs(value: Any) -> Mapping[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_PCRS:
        raise MalformedInput(f"attestation document: PCRs are not a map of 1 to {MAX_PCRS}")
    for index, digest in value.items():
        if not isinstance(index, int) or not 0 <= index < MAX_PCRS:
            raise MalformedInput(f"attestation document: PCR index {str(index)[:20]!r} is not 0 to 31")
        if not isinstance(digest, bytes) or len(digest) not in PCR_LENGTHS:
            raise MalformedInput(f"attestation document: PCR {index} has not 32, 48 or 64 bytes")
    return MappingProxyType(dict(sorted(value.items())))


def _cabundle(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_BUNDLE:
        raise MalformedInput(f"attestation document: cabundle is not an array of 1 to {MAX_BUNDLE}")
    return tuple(_bytes(item, "cabundle", 1, MAX_CERTIFICATE_BYTES) for item in value)


def _optional(members: Mapping[Any, Any], name: str, shortest: int, longest: int) -> bytes | None:
    value = members.get(name)
    return None if value is None else _bytes(value, name, shortest, longest)


def _bytes(value: Any, name: str, shortest: int, longest: int) -> bytes:
    if not isinstance(value, bytes) or not shortest <= len(value) <= longest:
        raise MalformedInput(
            f"attestation document: {name} is not a byte string of {shortest} to {longest} bytes"
        )
    return value

"""Evidence longer than a report: the certificates that the host hands out with it.

An extended guest request (and ``auxblob`` of Linux' configfs-tsm) yields a table. It begins with entries of
24 bytes, of which the last is zero; the certificates follow:

====== ==== ======== ======================================================
offset size field    meaning
====== ==== ======== ======================================================
0      16   guid     kind of certificate
16     4    offset   from the beginning of the table
20     4    length   in bytes
====== ==== ======== ======================================================

The host made the table and can put anything into it: all of it is verified like endorsements from elsewhere.
Entries of other kinds are left alone. GUIDs are accepted as text order writes them and in Microsoft's byte
order, because hosts disagree. Bytes that belong to no entry are padding and must be zero.

Source: AMD 56421 (GHCB Standardization) revision 2.03, section 4.1.8.1.
"""

from __future__ import annotations

import struct
from uuid import UUID

from cloister.attest.snp.report import REPORT_BYTES
from cloister.errors import MalformedInput

MAX_TABLE_BYTES = 128 * 1024
MAX_ENTRIES = 16
_ENTRY = struct.Struct("<16sII")
KINDS = {
    "vcek": UUID("63da758d-e664-4564-adc5-f4b93be8accd"),
    "vlek": UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"),
    "ask": UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"),
    "ark": UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"),
    "crl": UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"),
}
_KIND_OF = {encoded: kind for kind, guid in KINDS.items() for encoded in (guid.bytes, guid.bytes_le)}


def split_evidence(raw: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The report, and the certificates (by kind, DER or PEM) of the table that follows it, if there is one.

    Raises:
        MalformedInput: too short, or what follows the report is not a certificate table.
    """
    if len(raw) < REPORT_BYTES:
        raise MalformedInput(f"SEV-SNP report has {len(raw)} bytes, expected {REPORT_BYTES}")
    if len(raw) == REPORT_BYTES:
        return raw, {}
    return raw[:REPORT_BYTES], parse_table(raw[REPORT_BYTES:])


def parse_table(table: bytes) -> dict[str, bytes]:
    """The certificates of a table, by kind.

    Raises:
        MalformedInput: empty, an entry that points outside of it, or bytes that no entry accounts for.
    """
    if len(table) > MAX_TABLE_BYTES:
        raise MalformedInput(f"certificate table has {len(table)} bytes, at most {MAX_TABLE_BYTES} are read")
    entries = _entries(table)
    covered = (len(entries) + 1) * _ENTRY.size
    found: dict[str, bytes] = {}
    for guid, offset, length in sorted(entries, key=lambda entry: entry[1]):
        if offset < covered or not length or offset + length > len(table):
            raise MalformedInput("certificate table: an entry overlaps another one, or points outside")
        if any(table[covered:offset]):
            raise MalformedInput("certificate table: padding is not zero")
        covered = offset + length
        kind = _KIND_OF.get(guid)
        if kind in found:
            raise MalformedInput(f"certificate table has two entries of the kind {kind}")
        if kind:
            found[kind] = table[offset:covered]
    if any(table[covered:]):
        raise MalformedInput("certificate table: padding is not zero")
    return found


def render_table(certificates: dict[str, bytes]) -> bytes:
    """The table of these certificates (kind to DER)."""
    offset = (len(certificates) + 1) * _ENTRY.size
    header = b""
    for kind, content in certificates.items():
        header += _ENTRY.pack(KINDS[kind].bytes, offset, len(content))
        offset += len(content)
    return header + bytes(_ENTRY.size) + b"".join(certificates.values())


def _entries(table: bytes) -> list[tuple[bytes, int, int]]:
    entries: list[tuple[bytes, int, int]] = []
    for at in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, at)
        if not any(guid) and not offset and not length:
            if not entries:
                raise MalformedInput("SEV-SNP report is followed by an empty certificate table")
            return entries
        if len(entries) == MAX_ENTRIES:
            raise MalformedInput(f"certificate table has more than {MAX_ENTRIES} entries")
        entries.append((guid, offset, length))
    raise MalformedInput("what follows the SEV-SNP report is not a certificate table: it has no end")

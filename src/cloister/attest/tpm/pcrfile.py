"""PCR values as ``tpm2_quote --pcr`` writes them by default: C structures of tpm2-tools, little-endian.

====== ==== =================== ============================================================
offset size field               meaning
====== ==== =================== ============================================================
0      4    count               selections, at most 16
4      128  selections          16 of: u16 hash, u8 size of bitmap, 4 bytes of bitmap, u8 unused
132    4    lists               number of lists of digests that follow
136    532  list                u32 count, then 8 of: u16 size, 64 bytes
====== ==== =================== ============================================================

The lists hold the selected PCRs in the order of the selection, at most 8 in each.

Source: tpm2-tools 5, ``lib/pcr.c``, ``pcr_save``-format ``serialized``; TCG TSS 2.0 type definitions.
"""

from __future__ import annotations

from cloister.attest.tpm.algorithms import DIGEST_BYTES, hash_name
from cloister.attest.tpm.attest import bits_of
from cloister.errors import MalformedInput

MAX_PCR_FILE_BYTES = 136 + 16 * 532
_SELECTIONS, _SELECTION_BYTES = 16, 8
_LISTS_AT, _LIST_BYTES, _DIGESTS, _DIGEST_BYTES = 132, 532, 8, 66


def parse_pcr_file(raw: bytes) -> dict[str, dict[int, bytes]]:
    """PCR values by bank and number.

    Raises:
        MalformedInput: not this form, or another number of values than are selected.
    """
    count = int.from_bytes(raw[:4], "little")
    lists = int.from_bytes(raw[_LISTS_AT : _LISTS_AT + 4], "little")
    if len(raw) != _LISTS_AT + 4 + lists * _LIST_BYTES or count > _SELECTIONS:
        raise MalformedInput(f"PCR values: {len(raw)} bytes with {lists} lists, {count} selections")
    values: list[bytes] = []
    for number in range(lists):
        values.extend(_read_list(raw[_LISTS_AT + 4 + number * _LIST_BYTES :]))
    banks: dict[str, dict[int, bytes]] = {}
    remaining = iter(values)
    for position in range(4, 4 + count * _SELECTION_BYTES, _SELECTION_BYTES):
        bank = hash_name(int.from_bytes(raw[position : position + 2], "little"))
        size = raw[position + 2]
        if size > 4 or bank in banks:
            raise MalformedInput(f"PCR values: bitmap of {size} bytes, or the bank {bank} twice")
        banks[bank] = {}
        for index in bits_of(raw[position + 3 : position + 3 + size]):
            value = next(remaining, b"")
            if len(value) != DIGEST_BYTES[bank]:
                raise MalformedInput(f"PCR {index} of {bank} has {len(value)} bytes")
            banks[bank][index] = value
    if next(remaining, None) is not None:
        raise MalformedInput("PCR values: more values than are selected")
    return banks


def _read_list(raw: bytes) -> list[bytes]:
    count = int.from_bytes(raw[:4], "little")
    if count > _DIGESTS:
        raise MalformedInput(f"PCR values: list of {count}, at most {_DIGESTS} are possible")
    values = []
    for position in range(4, 4 + count * _DIGEST_BYTES, _DIGEST_BYTES):
        size = int.from_bytes(raw[position : position + 2], "little")
        if size > _DIGEST_BYTES - 2:
            raise MalformedInput(f"PCR values: digest of {size} bytes")
        values.append(raw[position + 2 : position + 2 + size])
    return values

"""Evidence of Google's TPM tools: the protocol-buffer message ``attest.Attestation``.

====================== ====== ================================================================
message                number field
====================== ====== ================================================================
Attestation            1      ak_pub, TPMT_PUBLIC
Attestation            2      quotes (repeated): Quote
Attestation            3      event_log
Attestation            6      ak_cert, DER
Attestation            7      intermediate_certs (repeated), DER
Quote                  1      quote, TPMS_ATTEST
Quote                  2      raw_sig, TPMT_SIGNATURE
Quote                  3      pcrs: PCRs
PCRs                   1      hash, the TPM's number
PCRs                   2      pcrs (repeated): key 1 number (absent: 0), value 2 digest
====================== ====== ================================================================

There is one quote for each bank. Other fields (instance names, canonical log, TEE evidence) are skipped:
nothing in the quotes vouches for them.

Source: google/go-tpm-tools, ``proto/attest.proto`` and ``proto/tpm.proto``; Protocol Buffers encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from cloister.attest.eventlog.log import MAX_LOG_BYTES
from cloister.attest.tpm.algorithms import hash_name
from cloister.attest.tpm.certificates import MAX_CERTIFICATES
from cloister.attest.tpm.evidence import TpmEvidence
from cloister.attest.tpm.keys import parse_tpmt_public
from cloister.attest.tpm.quote import PCRS, QuotePart
from cloister.errors import MalformedInput

MAX_MESSAGE_BYTES = MAX_LOG_BYTES + 256 * 1024
MAX_QUOTES = 8
MAX_FIELDS = 256
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def parse_protobuf_evidence(raw: bytes) -> TpmEvidence:
    """The parts of an Attestation message.

    Raises:
        MalformedInput: not this message.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise MalformedInput(f"TPM evidence has {len(raw)} bytes, at most {MAX_MESSAGE_BYTES} are read")
    fields = list(_fields(raw))
    quotes = [content for number, content in fields if number == 2]
    certificates = [content for number, content in fields if number == 6]
    certificates += [content for number, content in fields if number == 7]
    if not 0 < len(quotes) <= MAX_QUOTES or len(certificates) > MAX_CERTIFICATES:
        raise MalformedInput(f"TPM evidence has {len(quotes)} quotes, {len(certificates)} certificates")
    return TpmEvidence(
        quotes=tuple(_quote(_bytes(content)) for content in quotes),
        key=parse_tpmt_public(_bytes(_single(fields, 1, b""))),
        certificates=tuple(_bytes(content) for content in certificates),
        event_log=_bytes(_single(fields, 3, b"")) or None,
    )


def _quote(raw: bytes) -> QuotePart:
    fields = list(_fields(raw))
    values = list(_fields(_bytes(_single(fields, 3, b""))))
    number = _single(values, 1, 0)
    bank = hash_name(number if isinstance(number, int) else 0)
    pcrs: dict[int, bytes] = {}
    for field, content in values:
        if field != 2:
            continue
        entry = list(_fields(_bytes(content)))
        index = _single(entry, 1, 0)
        if not isinstance(index, int) or index >= PCRS or index in pcrs:
            raise MalformedInput("TPM evidence: a PCR number that is no PCR's, or occurs twice")
        pcrs[index] = _bytes(_single(entry, 2, b""))
    return QuotePart(_bytes(_single(fields, 1, b"")), _bytes(_single(fields, 2, b"")), {bank: pcrs})


def _single(fields: list[tuple[int, int | bytes]], number: int, default: int | bytes) -> int | bytes:
    found = [content for field, content in fields if field == number]
    if len(found) > 1:
        raise MalformedInput(f"TPM evidence: field {number} occurs {len(found)} times")
    return found[0] if found else default


def _bytes(content: int | bytes) -> bytes:
    if isinstance(content, int):
        raise MalformedInput("TPM evidence: a number where bytes should be")
    return content


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    offset = 0
    for _ in range(MAX_FIELDS):
        if offset == len(raw):
            return
        tag, offset = _varint(raw, offset)
        kind = tag & 7
        if kind == _VARINT:
            value, offset = _varint(raw, offset)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, offset = _varint(raw, offset)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise MalformedInput(f"TPM evidence: wire type {kind}")
        if size > len(raw) - offset:
            raise MalformedInput(f"TPM evidence: a field of {size} bytes, {len(raw) - offset} are left")
        yield tag >> 3, raw[offset : offset + size]
        offset += size
    if offset != len(raw):
        raise MalformedInput(f"TPM evidence: a message of more than {MAX_FIELDS} fields")


def _varint(raw: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for position, byte in enumerate(raw[offset : offset + 10]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, offset + position + 1
    raise MalformedInput("TPM evidence is neither a JSON object nor an Attestation message")

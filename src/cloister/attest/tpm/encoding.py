"""Bytes in JSON, as the attesters of the field write them: arrays of numbers, hexadecimal, base64, PEM."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from typing import Any

from cloister.attest.dcap.endorsements import parse_signed_json
from cloister.attest.tpm.certificates import split_pem
from cloister.errors import MalformedInput

MAX_EVIDENCE_BYTES = 4 * 1024 * 1024
_HEXADECIMAL = re.compile(r"(?:[0-9a-fA-F]{2})+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in ``raw``; a member that occurs twice is refused.

    Raises:
        MalformedInput: not UTF-8, not JSON, not an object, or too long.
    """
    if len(raw) > MAX_EVIDENCE_BYTES:
        raise MalformedInput(f"{what} has {len(raw)} bytes, at most {MAX_EVIDENCE_BYTES} are read")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedInput(f"{what} is not UTF-8") from error
    return parse_signed_json(text, what)


def decode_bytes(value: Any, what: str, limit: int) -> bytes:
    """Bytes from an array of numbers, hexadecimal, or base64 in either alphabet, padded or not.

    Text of an even number of hexadecimal digits is hexadecimal.

    Raises:
        MalformedInput: none of these, or more than ``limit`` bytes.
    """
    if isinstance(value, list) and len(value) <= limit:
        try:
            if not any(isinstance(item, bool) for item in value):
                return bytes(value)
        except (ValueError, TypeError) as error:
            raise MalformedInput(f"{what} is not an array of bytes") from error
    if isinstance(value, str) and len(value) <= 2 * limit + 4:
        text = "".join(value.split())
        if _HEXADECIMAL.fullmatch(text):
            return _limited(bytes.fromhex(text), what, limit)
        if _BASE64.fullmatch(text):
            return _limited(_from_base64(text, what), what, limit)
        if not text:
            return b""
    raise MalformedInput(f"{what} is not hexadecimal, base64, or an array of at most {limit} bytes")


def decode_certificates(value: Any, what: str) -> tuple[bytes, ...]:
    """Contents of certificates from PEM text with one or several, from DER, or from a list of these."""
    if isinstance(value, str) and "-----BEGIN" in value:
        return split_pem(value.encode("utf-8", "replace"))
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > 8:
            raise MalformedInput(f"{what} has {len(value)} certificates, at most 8 are read")
        return tuple(part for item in value for part in decode_certificates(item, what))
    raw = decode_bytes(value, what, 64 * 1024)
    return split_pem(raw) if raw.startswith(b"-----") else (raw,)


def member(mapping: Mapping[str, Any], names: Iterable[str], what: str) -> Any:
    """The one member of ``mapping`` that has one of ``names``; None if there is none, or it is null.

    Raises:
        MalformedInput: several of them are there: two readers might take different ones.
    """
    found = [name for name in names if mapping.get(name) is not None]
    if len(found) > 1:
        raise MalformedInput(f"{what} has both {found[0]} and {found[1]}")
    return mapping[found[0]] if found else None


def expect_object(value: Any, what: str) -> dict[str, Any]:
    """``value``, which must be a JSON object."""
    if not isinstance(value, dict):
        raise MalformedInput(f"{what} is not a JSON object")
    return value


def _from_base64(text: str, what: str) -> bytes:
    body = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (Base64Error, ValueError) as error:
        raise MalformedInput(f"{what} is not base64") from error


def _limited(raw: bytes, what: str, limit: int) -> bytes:
    if len(raw) > limit:
        raise MalformedInput(f"{what} has {len(raw)} bytes, at most {limit} are read")
    return raw

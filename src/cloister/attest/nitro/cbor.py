"""The part of CBOR that attestation documents use, decoded strictly.

================= ==========================================================================================
accepted          integers, byte strings, text, arrays, maps, tags, null, true, false
refused           strings of indefinite length, floats, other simple values, lengths that are not the
                  shortest, map keys that occur twice or are neither integers nor text, bytes after the value
bounds            ``MAX_DEPTH`` levels, ``MAX_ITEMS`` values; no length is believed beyond the input's own
================= ==========================================================================================

Arrays and maps may have indefinite length: NitroTPM writes its documents so.

Source: RFC 8949, sections 3 and 4.2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloister.errors import MalformedInput

MAX_DEPTH = 6
MAX_ITEMS = 1024
_INDEFINITE = 31
_BREAK = 0xFF
_SIMPLE = {20: False, 21: True, 22: None}


@dataclass(frozen=True, slots=True)
class Tag:
    """A tagged value."""

    number: int
    value: Any


def decode(raw: bytes) -> Any:
    """The one value in ``raw``: int, bytes, str, list, dict, ``Tag``, bool or None.

    Raises:
        MalformedInput: not CBOR, or not of the part that is accepted here.
    """
    decoder = _Decoder(raw)
    value = decoder.value(0)
    if decoder.at != len(raw):
        raise MalformedInput(f"CBOR: {len(raw) - decoder.at} bytes after the value")
    return value


def encode_head(major: int, argument: int) -> bytes:
    """The initial bytes of an item: major type, and length or value in its shortest form."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | info]) + argument.to_bytes(size, "big")
    raise MalformedInput("CBOR: a number of more than 64 bits")


def encode_bytes(value: bytes) -> bytes:
    """A byte string."""
    return encode_head(2, len(value)) + value


class _Decoder:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0
        self._items = 0

    def value(self, depth: int) -> Any:
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise MalformedInput(f"CBOR: more than {MAX_DEPTH} levels or {MAX_ITEMS} values")
        initial = self._take(1)[0]
        major, info = initial >> 5, initial & 31
        if major == 7:
            if info not in _SIMPLE:
                raise MalformedInput(f"CBOR: simple value or float {initial:#x} is not accepted")
            return _SIMPLE[info]
        if info == _INDEFINITE and major in (4, 5):
            return self._array(None, depth) if major == 4 else self._map(None, depth)
        argument = self._argument(info)
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self._take(argument)
            case 3:
                return self._text(argument)
            case 4:
                return self._array(argument, depth)
            case 5:
                return self._map(argument, depth)
            case _:
                return Tag(argument, self.value(depth + 1))

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.raw):
            raise MalformedInput(f"CBOR ends at byte {len(self.raw)}, {end} are needed")
        taken = self.raw[self.at : end]
        self.at = end
        return taken

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise MalformedInput(f"CBOR: length information {info} is not accepted")
        size = 1 << info - 24
        argument = int.from_bytes(self._take(size), "big")
        if argument < (24 if size == 1 else 1 << 4 * size):
            raise MalformedInput(f"CBOR: {argument} is not written in its shortest form")
        return argument

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedInput("CBOR: text is not UTF-8") from error

    def _more(self, count: int | None, done: int) -> bool:
        if count is not None:
            return done < count
        if self.raw[self.at : self.at + 1] == bytes([_BREAK]):
            self.at += 1
            return False
        return True

    def _array(self, count: int | None, depth: int) -> list[Any]:
        items: list[Any] = []
        while self._more(count, len(items)):
            items.append(self.value(depth + 1))
        return items

    def _map(self, count: int | None, depth: int) -> dict[int | str, Any]:
        items: dict[int | str, Any] = {}
        while self._more(count, len(items)):
            key = self.value(depth + 1)
            if isinstance(key, bool) or not isinstance(key, int | str):
                raise MalformedInput("CBOR: a map's key is neither a number nor text")
            if key in items:
                raise MalformedInput(f"CBOR: the key {str(key)[:40]!r} occurs twice")
            items[key] = self.value(depth + 1)
        return items

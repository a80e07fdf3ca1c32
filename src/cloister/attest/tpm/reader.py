"""Exact reads of the TPM's own encoding: big-endian integers and sized buffers (TPM2B)."""

from __future__ import annotations

from cloister.errors import MalformedInput


class Reader:
    """One structure, read from its first byte to its last."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw = raw
        self._what = what
        self._offset = 0

    def take(self, count: int, field: str) -> bytes:
        """The next ``count`` bytes."""
        end = self._offset + count
        if end > len(self._raw):
            raise MalformedInput(
                f"{self._what} ends inside {field}: needs {end} bytes, found {len(self._raw)}"
            )
        part = self._raw[self._offset : end]
        self._offset = end
        return part

    def number(self, count: int, field: str) -> int:
        """An integer of ``count`` bytes."""
        return int.from_bytes(self.take(count, field), "big")

    def sized(self, field: str, limit: int) -> bytes:
        """A TPM2B: u16 size, then as many bytes, at most ``limit``."""
        size = self.number(2, f"{field} size")
        if size > limit:
            raise MalformedInput(f"{self._what}: {field} has {size} bytes, at most {limit} are allowed")
        return self.take(size, field)

    def finish(self) -> None:
        """Nothing may follow."""
        left = len(self._raw) - self._offset
        if left:
            raise MalformedInput(f"{self._what}: {left} bytes follow its end")

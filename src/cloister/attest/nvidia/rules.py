"""The kind of reference value that only NVIDIA's reports need: measurements by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloister.attest.model import Check, Claims
from cloister.errors import ConfigError

MAX_INDEX = 254
VALUE_BYTES = 48


@dataclass(frozen=True, slots=True)
class GoldenMeasurements:
    """A table from SPDM index to acceptable values; the claim must have one of them at each listed index."""

    name: str
    about: str
    get: Callable[[Any], Mapping[int, bytes]]

    @property
    def meaning(self) -> str:
        return (
            f"table: index, 1 to {MAX_INDEX}, to a list of hexadecimal values of {VALUE_BYTES} bytes; each"
            " listed measurement has one of its values; absent: not compared; empty: denied"
        )

    def parse(self, value: Any) -> Mapping[int, tuple[bytes, ...]]:
        if not isinstance(value, Mapping):
            raise ConfigError('must be a table, for example { 4 = ["73bb…"] }')
        return {_index(key): _values(key, values) for key, values in value.items()}

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        found = self.get(claims)
        wrong = [index for index, accepted in value.items() if found.get(index) not in accepted]
        if not value:
            return Check(self.name, "nothing: the table is empty", f"{len(found)} measurements", False)
        expected = f"listed values at {', '.join(map(str, value))}"
        return Check(
            self.name, expected, f"others at {', '.join(map(str, wrong))}" if wrong else "these", not wrong
        )


def _index(key: Any) -> int:
    text = str(key)
    if not (text.isascii() and text.isdecimal() and len(text) <= 3 and 1 <= int(text) <= MAX_INDEX):
        raise ConfigError(f"{text[:20]!r} is not an index from 1 to {MAX_INDEX}")
    return int(text)


def _values(key: Any, values: Any) -> tuple[bytes, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ConfigError(f"index {key} must have a list of strings")
    try:
        parsed = tuple(bytes.fromhex(value) for value in values)
    except ValueError as error:
        raise ConfigError(f"a value of index {key} is not hexadecimal") from error
    if any(len(value) != VALUE_BYTES for value in parsed):
        raise ConfigError(f"a value of index {key} has not {VALUE_BYTES} bytes")
    return parsed

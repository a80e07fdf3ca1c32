"""The kinds of reference value: form in TOML, comparison with a claim, and what leaving it out means.

A scheme's table is a tuple of these. An empty list denies, whatever the kind: it names no acceptable value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from cloister.attest.model import Check, Claims
from cloister.errors import ConfigError

Getter = Callable[[Any], Any]


class Rule(Protocol):
    """One field of a table of reference values."""

    @property
    def name(self) -> str:
        """The field's name in TOML."""
        ...

    @property
    def about(self) -> str:
        """What the field is, for the documentation."""
        ...

    @property
    def meaning(self) -> str:
        """Form, comparison, and what absent and empty mean, for the documentation."""
        ...

    def parse(self, value: Any) -> Any:
        """The value in TOML as ``check`` takes it; ConfigError says what is wrong with it."""
        ...

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        """Compare; ``value`` is None where the field is absent. None: there was nothing to compare."""
        ...


@dataclass(frozen=True, slots=True)
class OneOf:
    """A list of hexadecimal values of one length; the claim must equal one of them."""

    name: str
    length: int
    about: str
    get: Getter
    required: bool = False
    default: tuple[str, ...] | None = None

    @property
    def meaning(self) -> str:
        form = f"list of hexadecimal values of {self.length} bytes; the claim equals one of them"
        if self.required:
            return f"{form}; absent or empty: denied"
        if self.default is not None:
            return f"{form}; absent: must be {', '.join(self.default)}; empty: denied"
        return f"{form}; absent: not compared; empty: denied"

    def parse(self, value: Any) -> tuple[str, ...]:
        return tuple(_hexadecimal(item, self.length) for item in _strings(value))

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        found = self.get(claims)
        text = "none" if found is None else found.hex()
        if value is None:
            value = self.default
        if value is None:
            return (
                Check(self.name, "a listed value, but none is listed", text, False) if self.required else None
            )
        return _membership(self.name, text, value)


@dataclass(frozen=True, slots=True)
class OneWord:
    """A list of words; the claim must equal one of them."""

    name: str
    about: str
    get: Getter
    known: tuple[str, ...] = ()
    default: tuple[str, ...] | None = None
    fold_case: bool = False
    explain: Getter | None = None
    """More words on what was found, for people; may be empty."""

    @property
    def meaning(self) -> str:
        absent = "not compared" if self.default is None else f"must be {' or '.join(self.default)}"
        known = f" (known: {', '.join(self.known)})" if self.known else ""
        return f"list of words{known}; the claim equals one of them; absent: {absent}; empty: denied"

    def parse(self, value: Any) -> tuple[str, ...]:
        words = tuple(item.lower() if self.fold_case else item for item in _strings(value))
        unknown = [word for word in words if self.known and word not in self.known]
        if unknown:
            raise ConfigError(f"unknown value {unknown[0]!r}, expected {', '.join(self.known)}")
        return words

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            value = self.default
        if value is None:
            return None
        check = _membership(self.name, self.get(claims), value)
        more = "" if self.explain is None else self.explain(claims)
        return replace(check, found=f"{check.found} ({more})") if more else check


@dataclass(frozen=True, slots=True)
class Subset:
    """A list of words; every word of the claim must be among them."""

    name: str
    about: str
    get: Getter

    @property
    def meaning(self) -> str:
        return "list of words; each one that the claim has must be listed; absent: not compared; empty: none"

    def parse(self, value: Any) -> tuple[str, ...]:
        return tuple(_strings(value))

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        found = self.get(claims)
        unlisted = [item for item in found if item not in value]
        expected = f"only {', '.join(value)}" if value else "none"
        return Check(self.name, expected, ", ".join(unlisted or found) or "none", not unlisted)


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A number; the claim must not be below it."""

    name: str
    about: str
    get: Getter
    maximum: int = 2**32 - 1

    @property
    def meaning(self) -> str:
        return f"number, 0 to {self.maximum}; the claim is not below it; absent: not compared"

    def parse(self, value: Any) -> int:
        return _number(value, self.maximum)

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        found = self.get(claims)
        return Check(self.name, f"at least {value}", str(found), found >= value)


@dataclass(frozen=True, slots=True)
class EachAtLeast:
    """Hexadecimal security versions, one per byte; no byte of the claim may be below its own."""

    name: str
    length: int
    about: str
    get: Getter

    @property
    def meaning(self) -> str:
        return (
            f"hexadecimal, {self.length} bytes; no byte of the claim is below its own; absent: not compared"
        )

    def parse(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ConfigError("must be a string")
        return _hexadecimal(value, self.length)

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        found = self.get(claims)
        reached = all(own >= least for own, least in zip(found, bytes.fromhex(value), strict=True))
        return Check(self.name, f"each byte at least {value}", found.hex(), reached)


@dataclass(frozen=True, slots=True)
class Unless:
    """A switch that permits something unsafe; off unless it is set to true."""

    name: str
    about: str
    get: Getter
    """Whether the claims have the unsafe property."""
    property_name: str
    default: bool = False

    @property
    def meaning(self) -> str:
        return "true or false; the claim may have the property only where this is true; absent: false"

    def parse(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ConfigError("must be true or false")
        return value

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        has = bool(self.get(claims))
        expected = f"either ({self.name} = true)" if value else "false"
        return Check(self.property_name, expected, str(has).lower(), bool(value) or not has)


@dataclass(frozen=True, slots=True)
class NotOlderThan:
    """A number of seconds; the claim, a time, must not lie further back."""

    name: str
    about: str
    get: Getter

    @property
    def meaning(self) -> str:
        return "seconds; the claim's time is not further back; absent: not compared"

    def parse(self, value: Any) -> int:
        return _number(value, 2**32 - 1)

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        age_s = int((now - datetime.fromisoformat(self.get(claims))).total_seconds())
        return Check(self.name, f"at most {value} s", f"{age_s} s", age_s <= value)


def render_reason(check: Check) -> str:
    """A failed check as one line; long hexadecimal values are cut."""
    return f"{check.name}: expected {_cut(check.expected)}, found {_cut(check.found)}"


def _cut(text: str) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{8,}", r"\1…", text)


def _membership(name: str, found: str, values: tuple[str, ...]) -> Check:
    if not values:
        expected = "nothing: the list is empty"
    else:
        expected = values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    return Check(name, expected, found, found in values)


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError("must be a list of strings")
    return value


def _number(value: Any, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
        raise ConfigError(f"must be a number from 0 to {maximum}")
    return value


def _hexadecimal(text: str, length: int) -> str:
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"{text[:20]!r} is not hexadecimal") from error
    if len(raw) != length:
        raise ConfigError(f"must have {length} bytes ({2 * length} hexadecimal digits), found {len(raw)}")
    return raw.hex()

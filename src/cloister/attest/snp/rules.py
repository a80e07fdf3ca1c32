"""Kinds of reference value that only SEV-SNP needs; the general ones are ``cloister.attest.rules``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloister.attest.model import Check, Claims
from cloister.attest.rules import Getter
from cloister.attest.snp.tcb import COMPONENTS
from cloister.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TcbAtLeast:
    """A table of security versions; no component of the claim may be below its own."""

    name: str
    about: str
    get: Getter

    @property
    def meaning(self) -> str:
        return (
            f"table of numbers, 0 to 255 ({', '.join(COMPONENTS)}; fmc is Turin's only); no component of the"
            " claim is below its own, one that the claim lacks is; absent: not compared; empty: an error"
        )

    def parse(self, value: Any) -> dict[str, int]:
        if not isinstance(value, Mapping) or not value:
            raise ConfigError("must be a table such as { bootloader = 4, snp = 24 }")
        for component, least in value.items():
            if component not in COMPONENTS:
                raise ConfigError(f"unknown component {component!r}, expected {', '.join(COMPONENTS)}")
            if isinstance(least, bool) or not isinstance(least, int) or not 0 <= least <= 0xFF:
                raise ConfigError(f"{component} must be a number from 0 to 255")
        return dict(value)

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        found = self.get(claims)
        reached = all(found.get(component, -1) >= least for component, least in value.items())
        return Check(self.name, f"at least {_pairs(value)}", _pairs(found), reached)


@dataclass(frozen=True, slots=True)
class AtMost:
    """A number; the claim must not be above it."""

    name: str
    about: str
    get: Getter
    maximum: int
    default: int

    @property
    def meaning(self) -> str:
        return f"number, 0 to {self.maximum}; the claim is not above it; absent: {self.default}"

    def parse(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= self.maximum:
            raise ConfigError(f"must be a number from 0 to {self.maximum}")
        return value

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        most = self.default if value is None else value
        found = self.get(claims)
        return Check(self.name, f"at most {most}", str(found), found <= most)


@dataclass(frozen=True, slots=True)
class VersionAtLeast:
    """A version, ``major.minor`` or ``major.minor.build``; the claim must not be below it."""

    name: str
    about: str
    get: Getter

    @property
    def meaning(self) -> str:
        return "version such as 1.55 or 1.55.29; the claim is not below it; absent: not compared"

    def parse(self, value: Any) -> str:
        parts = value.split(".") if isinstance(value, str) else []
        if len(parts) not in (2, 3) or not all(_is_octet(part) for part in parts):
            raise ConfigError('must be a version such as "1.55" or "1.55.29"')
        return ".".join(str(int(part)) for part in parts)

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        found = self.get(claims)
        return Check(self.name, f"at least {value}", found, _numbers(found) >= _numbers(value))


@dataclass(frozen=True, slots=True)
class EachSet:
    """A list of flags; the claim must have every one of them set."""

    name: str
    about: str
    get: Getter
    known: tuple[str, ...]

    @property
    def meaning(self) -> str:
        return f"list of words ({', '.join(self.known)}); each is set; absent: not compared; empty: denied"

    def parse(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError("must be a list of strings")
        unknown = [item for item in value if item not in self.known]
        if unknown:
            raise ConfigError(f"unknown value {unknown[0]!r}, expected {', '.join(self.known)}")
        return tuple(value)

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        if not value:
            return Check(self.name, "nothing: the list is empty", "none", False)
        flags = self.get(claims)
        found = [item for item in value if flags[item]]
        return Check(self.name, ", ".join(value), ", ".join(found) or "none", len(found) == len(value))


@dataclass(frozen=True, slots=True)
class Permitted:
    """A switch that forbids something which is usual; on unless it is set to false."""

    name: str
    about: str
    get: Getter
    """Whether the claims have the property."""
    property_name: str

    @property
    def meaning(self) -> str:
        return "true or false; false: the claim may not have the property; absent: true"

    def parse(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ConfigError("must be true or false")
        return value

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None or value:
            return None
        has = bool(self.get(claims))
        return Check(self.property_name, "false", str(has).lower(), not has)


@dataclass(frozen=True, slots=True)
class CrlNotOlderThan:
    """A number of seconds; a revocation list must have been consulted, and must not be older."""

    name: str
    about: str
    get: Getter

    @property
    def meaning(self) -> str:
        return "seconds; a list was consulted and is not older; absent: verified without one is accepted"

    def parse(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise ConfigError(f"must be a number from 0 to {2**32 - 1}")
        return value

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if value is None:
            return None
        issued = self.get(claims)
        if not issued:
            return Check(self.name, f"at most {value} s", "no revocation list", False)
        age_s = int((now - datetime.fromisoformat(issued)).total_seconds())
        return Check(self.name, f"at most {value} s", f"{age_s} s", age_s <= value)


def _pairs(components: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {version}" for name, version in components.items())


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _is_octet(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 3 and int(part) <= 0xFF

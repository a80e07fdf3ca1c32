"""Kinds of reference value that only TPMs need; the general ones are ``cloister.attest.rules``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloister.attest.model import Check, Claims
from cloister.attest.rules import Getter
from cloister.attest.tpm.algorithms import DIGEST_BYTES
from cloister.attest.tpm.quote import PCRS
from cloister.errors import ConfigError

BANKS = {size: name for name, size in DIGEST_BYTES.items() if name != "sha1"}
"""Banks by the length of their values. SHA-1 is left out: its values prove little."""


@dataclass(frozen=True, slots=True)
class PcrValues:
    """A table of PCRs; each that is named must have been quoted with one of its listed values."""

    name: str
    about: str
    get: Getter
    """The quoted values, by bank and number."""

    @property
    def meaning(self) -> str:
        return (
            'table such as { 4 = ["9c..."], 11 = ["ab...", "cd..."] }; numbers 0 to 23, hexadecimal values of'
            " 32, 48 or 64 bytes, whose length says which bank is meant; each PCR named is quoted with one of"
            " its values; absent, an empty table or an empty list: denied"
        )

    def parse(self, value: Any) -> dict[int, tuple[str, ...]]:
        if not isinstance(value, Mapping):
            raise ConfigError('must be a table such as { 4 = ["9c..."] }')
        return {_number(key): _values(key, values) for key, values in value.items()}

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        if not value:
            return Check(self.name, "values of at least one PCR, but none is listed", "", False)
        banks = self.get(claims)
        wrong: list[str] = []
        for index, values in value.items():
            found = {text: _quoted(banks, index, text) for text in values}
            if not any(text == quoted for text, quoted in found.items()):
                quoted = next((quoted for quoted in found.values() if quoted), "")
                wrong.append(f"{index} = {quoted or 'not quoted'}")
        expected = "; ".join(
            f"{index} = {' or '.join(values) or 'nothing'}" for index, values in value.items()
        )
        return Check(self.name, expected, "; ".join(wrong) or "all as expected", not wrong)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """Digests of attestation keys; one that no vendor has certified must be among them."""

    name: str
    about: str
    get: Getter
    """SHA-256 of the SubjectPublicKeyInfo, hexadecimal."""
    certified: Getter

    @property
    def meaning(self) -> str:
        return (
            "list of SHA-256 (of the SubjectPublicKeyInfo, hexadecimal); the key is one of them; absent: a"
            " key with a vendor's certificate, or from the endorsements, is accepted, any other denied;"
            " empty: denied"
        )

    def parse(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError("must be a list of strings")
        for item in value:
            if not re.fullmatch("[0-9a-fA-F]{64}", item):
                raise ConfigError(f"{item[:20]!r} is not hexadecimal of 32 bytes")
        return tuple(item.lower() for item in value)

    def check(self, claims: Claims, value: Any, now: datetime) -> Check | None:
        found = self.get(claims)
        if value is None:
            expected = "a certified or endorsed key, or one listed here"
            return Check(self.name, expected, found, bool(self.certified(claims)))
        expected = f"one of {', '.join(value)}" if value else "nothing: the list is empty"
        return Check(self.name, expected, found, found in value)


def _number(key: Any) -> int:
    if not isinstance(key, str) or not key.isascii() or not key.isdigit() or int(key[:3]) >= PCRS:
        raise ConfigError(f"{str(key)[:20]!r} is not the number of a PCR, 0 to {PCRS - 1}")
    return int(key)


def _values(key: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise ConfigError(f"{key} must be a list of strings")
    for item in values:
        if not re.fullmatch("(?:[0-9a-fA-F]{2})+", item) or len(item) // 2 not in BANKS:
            raise ConfigError(f"{key}: {item[:20]!r} is not hexadecimal of 32, 48 or 64 bytes")
    return tuple(item.lower() for item in values)


def _quoted(banks: Mapping[str, Mapping[int, bytes]], index: int, text: str) -> str:
    return banks.get(BANKS[len(text) // 2], {}).get(index, b"").hex()

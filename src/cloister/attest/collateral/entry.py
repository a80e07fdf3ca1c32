"""Endorsements that were obtained: whose, when, from where. One entry is a cache file, several are a bundle.

An entry is a JSON object:

================ ==============================================================================
member           content
================ ==============================================================================
``platform``     ``scheme``, ``fmspc``, ``ca`` (Intel); ``scheme``, ``product``, ``kind``,
                 ``chip_id``, ``tcb`` (AMD): what the endorsements were asked for
``obtained``     RFC 3339 time in UTC
``source``       where they came from, for people
``endorsements`` what ``from_mapping`` of the vendor's class takes
================ ==============================================================================

A bundle is ``{"bundle": 1, "entries": [...]}``. Neither is signed: what is in it is, by its vendor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cloister.attest.collateral.parts import render_time
from cloister.attest.model import Endorsements
from cloister.attest.verifier import parse_endorsements
from cloister.errors import MalformedInput

BUNDLE_VERSION = 1
MAX_BUNDLE_BYTES = 64 * 1024 * 1024
MAX_ENTRY_BYTES = 4 * 1024 * 1024
MAX_ENTRIES = 4096
_MEMBERS = {"platform", "obtained", "source", "endorsements"}
_KEYS = (("scheme", "fmspc", "ca"), ("scheme", "product", "kind", "chip_id", "tcb"))


@dataclass(frozen=True, slots=True)
class Entry:
    """Endorsements of one platform."""

    key: Mapping[str, str]
    """``key`` of an ``IntelPlatform`` or ``AmdPlatform``; only ``scheme`` where the evidence brought them."""
    endorsements: Endorsements
    obtained: datetime
    source: str

    def to_mapping(self) -> dict[str, Any]:
        """JSON form, as ``parse_entry`` takes it."""
        return {
            "platform": dict(self.key),
            "obtained": render_time(self.obtained),
            "source": self.source,
            "endorsements": self.endorsements.to_mapping(),
        }


def parse_entry(document: Any) -> Entry:
    """An entry from its JSON form.

    Raises:
        MalformedInput: a member is missing, unknown or of the wrong form.
    """
    if not isinstance(document, dict) or set(document) != _MEMBERS:
        raise MalformedInput(f"collateral entry: expected an object of {', '.join(sorted(_MEMBERS))}")
    key, source = document["platform"], document["source"]
    if not isinstance(key, dict) or not all(isinstance(value, str) for value in key.values()):
        raise MalformedInput("collateral entry: platform is not an object of strings")
    if tuple(sorted(key)) not in {tuple(sorted(names)) for names in (*_KEYS, ("scheme",))}:
        raise MalformedInput(f"collateral entry: platform has {', '.join(sorted(key))[:80]!r}")
    if not isinstance(source, str):
        raise MalformedInput("collateral entry: source is not a string")
    if not isinstance(document["endorsements"], dict):
        raise MalformedInput("collateral entry: endorsements are not an object")
    endorsements = parse_endorsements(key["scheme"], document["endorsements"])
    return Entry(key, endorsements, _time(document["obtained"]), source)


def parse_bundle(raw: bytes) -> tuple[Entry, ...]:
    """The entries of a bundle.

    Raises:
        MalformedInput: not a bundle, a version that is not known, or two entries of one platform.
    """
    document = parse_json(raw, MAX_BUNDLE_BYTES, "collateral bundle")
    if document.get("bundle") != BUNDLE_VERSION or set(document) != {"bundle", "entries"}:
        raise MalformedInput(f"not a collateral bundle of version {BUNDLE_VERSION}")
    listed = document["entries"]
    if not isinstance(listed, list) or len(listed) > MAX_ENTRIES:
        raise MalformedInput(f"collateral bundle: entries is not a list of at most {MAX_ENTRIES}")
    entries = tuple(parse_entry(item) for item in listed)
    if len({canonical(entry.key) for entry in entries}) != len(entries):
        raise MalformedInput("collateral bundle has two entries of one platform")
    return entries


def render_bundle(entries: Sequence[Entry]) -> bytes:
    """The bundle of these entries; of several of one platform, the last."""
    unique = {canonical(entry.key): entry for entry in entries}
    document = {"bundle": BUNDLE_VERSION, "entries": [entry.to_mapping() for entry in unique.values()]}
    return json.dumps(document, indent=1).encode() + b"\n"


def parse_json(raw: bytes, limit: int, what: str) -> dict[str, Any]:
    """A JSON object of at most ``limit`` bytes; MalformedInput otherwise."""
    if len(raw) > limit:
        raise MalformedInput(f"{what} has {len(raw)} bytes, at most {limit} are read")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"{what} is not JSON") from error
    if not isinstance(document, dict):
        raise MalformedInput(f"{what} is not a JSON object")
    return document


def canonical(key: Mapping[str, str]) -> str:
    """One text per platform."""
    return json.dumps(dict(key), sort_keys=True, separators=(",", ":"))


def _time(value: Any) -> datetime:
    try:
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (TypeError, ValueError) as error:
        raise MalformedInput("collateral entry: obtained is not an RFC 3339 time in UTC") from error

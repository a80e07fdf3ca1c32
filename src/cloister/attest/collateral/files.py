"""Endorsements without a network: a bundle that was made elsewhere, and what the evidence itself brings."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cloister.attest.collateral.entry import MAX_BUNDLE_BYTES, Entry, canonical, parse_bundle
from cloister.attest.collateral.platform import Wanted
from cloister.attest.verifier import parse_endorsements
from cloister.errors import ConfigError


class BundleSource:
    """The entries of a bundle."""

    def __init__(self, entries: Sequence[Entry], name: str = "bundle") -> None:
        self._entries = {canonical(entry.key): entry for entry in entries}
        self._name = name

    @classmethod
    def from_file(cls, path: Path) -> BundleSource:
        """The bundle in ``path``.

        Raises:
            ConfigError: it cannot be read.
            MalformedInput: it is not a bundle.
        """
        return cls(parse_bundle(read_file(path)), f"bundle {path}")

    @property
    def name(self) -> str:
        return self._name

    def find(self, wanted: Wanted, now: datetime) -> Entry | None:
        """The entry of this platform."""
        found = (self._entries.get(canonical(platform.key)) for platform in wanted.platforms)
        return next((entry for entry in found if entry is not None), None)


class EvidenceSource:
    """What the Attester sent along: certificates inside the evidence, or a JSON document beside it.

    The sender chose it. It is signed by the vendor like any other, but may be the oldest that still holds.

    Args:
        brought: JSON form of the endorsements beside the evidence, or None.
    """

    def __init__(self, brought: Mapping[str, Any] | None = None) -> None:
        self._brought = brought

    @property
    def name(self) -> str:
        return "the evidence itself"

    def find(self, wanted: Wanted, now: datetime) -> Entry | None:
        """What was brought; MalformedInput if it has not the vendor's form."""
        key = {"scheme": wanted.scheme}
        if self._brought is not None:
            return Entry(key, parse_endorsements(wanted.scheme, self._brought), now, self.name)
        carried = wanted.carried
        return Entry(key, carried, now, self.name) if carried.vcek or carried.vlek else None


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; ConfigError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def read_file(path: Path) -> bytes:
    """The bytes of a file of collateral or evidence; ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error

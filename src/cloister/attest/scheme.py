"""What the verifier knows of one kind of Evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from cloister.attest.model import Claims, Endorsements
from cloister.attest.rules import Rule

Verify = Callable[[bytes, Endorsements | None, datetime, Sequence[x509.Certificate] | None], Claims]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One row of the verifier's table."""

    name: str
    title: str
    verify: Verify
    """Evidence, Endorsements, time, roots (None: the vendor's own) -> Claims, or raise."""
    parse_endorsements: Callable[[Mapping[str, Any]], Endorsements]
    vendor_roots: Callable[[], tuple[x509.Certificate, ...]]
    claims: type[Claims]
    rules: tuple[Rule, ...]
    """The scheme's table of reference values."""
    sound_status: frozenset[str]
    """Values of ``tcb_status`` that leave nothing to be desired."""

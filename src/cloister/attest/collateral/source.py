"""Where endorsements come from: one small Protocol."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from cloister.attest.collateral.entry import Entry
from cloister.attest.collateral.platform import Wanted


class Source(Protocol):
    """Something that may have endorsements for a platform. It answers; it verifies nothing."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def find(self, wanted: Wanted, now: datetime) -> Entry | None:
        """The endorsements for ``wanted``, or None where this source has none.

        Args:
            now: aware time, the date of what is obtained.
        Raises:
            TransportError: the source could not be asked, or its answer breaks the protocol.
            MalformedInput, ConfigError: a file that the source reads is not what it should be.
        """
        ...

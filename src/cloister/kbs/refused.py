"""A refusal with the protocol's error variant."""

from __future__ import annotations

from cloister.errors import KeyUnavailable


class Refused(KeyUnavailable):
    """A request that the broker refuses, with the protocol's error variant."""

    def __init__(self, variant: str, detail: str) -> None:
        super().__init__(detail)
        self.variant = variant


class CannotNow(Refused):
    """No refusal, but an answer that has to wait: HTTP status 503. A lease is still good."""

"""Verifying a service again before the last verification is too old, while requests go on under that one.

The work is done in a thread of its own, for blocking callers and event loops alike. What it finds is taken by
the next request: a new verification replaces the former one; a refusal ends the former one at once; a service
that could not be reached changes nothing until the former one is too old.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cloister.errors import CloisterError

EARLY = 0.8
"""Part of the maximum age after which a busy client begins to verify again."""

Found = TypeVar("Found")


class Renewal(Generic[Found]):
    """At most one verification in the background."""

    def __init__(self, verify: Callable[[], Found], discard: Callable[[Found], None]) -> None:
        """Set up.

        Args:
            verify: raises CloisterError.
            discard: for what was found but is not wanted any more.
        """
        self._verify, self._discard = verify, discard
        self._lock = threading.Lock()
        self._round = 0
        self._running = False
        self._found: Found | None = None
        self._error: CloisterError | None = None

    def begin(self) -> None:
        """Start, unless it runs or what it found was not taken yet."""
        with self._lock:
            if self._running or self._found is not None or self._error is not None:
                return
            self._running = True
            number = self._round
        threading.Thread(target=self._run, args=(number,), daemon=True, name="cloister-verify").start()

    def take(self) -> Found | None:
        """What was found since; None if there is nothing.

        Raises:
            CloisterError: the service does not verify any more, or was not reached.
        """
        with self._lock:
            found, error = self._found, self._error
            self._found = self._error = None
        if error is not None:
            raise error
        return found

    def forget(self) -> None:
        """Whatever runs or was found is of no interest: another verification is newer, or nobody asks."""
        with self._lock:
            self._round += 1
            self._running = False
            found, self._found, self._error = self._found, None, None
        if found is not None:
            self._discard(found)

    def _run(self, number: int) -> None:
        found: Found | None = None
        error: CloisterError | None = None
        try:
            found = self._verify()
        except CloisterError as failure:
            error = failure
        with self._lock:
            if wanted := number == self._round:
                self._running, self._found, self._error = False, found, error
        if found is not None and not wanted:
            self._discard(found)

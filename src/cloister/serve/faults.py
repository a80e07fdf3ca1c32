"""What a log may say of a failure: never its text, which can hold what a caller sent, but which one it is.

A fingerprint is the same for the same defect, whatever the request was. In protected mode the worker's word
for it is a guest's too, who could make it say anything. So it is hidden under a key of this run: the operator
sees which failures are the same one, and finds the one that a caller reports, and nothing else is told.
"""

from __future__ import annotations

import hmac
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec

from cloister.serve.fingerprint import fingerprint
from cloister.serve.frames import Fault
from cloister.serve.log import log

EVERY_S = 60.0
"""A failure that goes on is logged so often, with how many times it was seen."""
MAX_KNOWN = 32
"""Different failures of one model that are told apart between two rounds."""
_KEY = os.urandom(32)


class FaultLog:
    """Logs the failures of one version of a model, each at its first time and then once in a while."""

    def __init__(self, model: str, version: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self._version = model, version
        self._clock = clock
        self._since = clock()
        self._seen: dict[str, int] = {}

    def note(self, fault: Fault, *, guest: bool) -> Fault:
        """Note one; returns it as the caller gets it, with the fingerprint that the log has.

        Args:
            guest: the worker's words are not to reach the log (protected mode).
        """
        if guest and fault.fingerprint:
            hidden = hmac.digest(_KEY, f"{fault.exception} {fault.fingerprint}".encode(), "sha256").hex()[:12]
            fault = msgspec.structs.replace(fault, fingerprint=hidden)
        now = self._clock()
        if now - self._since >= EVERY_S:
            self._tell_repeated()
            self._since = now
        times = self._seen.get(fault.fingerprint, 0)
        if times or len(self._seen) < MAX_KNOWN:
            self._seen[fault.fingerprint] = times + 1
            if not times:
                self._tell(fault.fingerprint, 1)
        return fault

    def _tell_repeated(self) -> None:
        for known, times in self._seen.items():
            if times > 1:
                self._tell(known, times - 1)
        self._seen.clear()

    def _tell(self, known: str, times: int) -> None:
        shown = known if known.isalnum() and len(known) <= 64 else "none"
        log.warning(
            "handler failed", model=self._model, version=self._version, fingerprint=shown, times=times
        )


def report_crashes_without_content() -> None:
    """From now on, what nobody catches is one line with type and fingerprint, never a traceback with text."""

    def tell(
        kind: type[BaseException], error: BaseException | None, _: TracebackType | None, where: str
    ) -> None:
        shown = fingerprint(error) if error is not None else "none"
        log.error("crash", where=where, exception=kind.__name__, fingerprint=shown)

    def in_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        tell(kind, error, trace, "main thread")

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, SystemExit):
            tell(arguments.exc_type, arguments.exc_value, arguments.exc_traceback, "thread")

    def nowhere(arguments: Any) -> None:
        tell(arguments.exc_type, arguments.exc_value, arguments.exc_traceback, "callback")

    sys.excepthook = in_main
    threading.excepthook = in_thread
    sys.unraisablehook = nowhere

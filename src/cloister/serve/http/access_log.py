"""The access log: one line for each answered request, without content; written in batches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec

MAX_WAITING = 4096
"""Lines that wait for the next flush; more are flushed at once."""


class AccessLog:
    """Collects what was answered, and writes it about once a second.

    A line holds the model, the status, the answer's length and the time it took: no path that no model has,
    no query, no header, no address.
    """

    def __init__(self, write: Callable[[str], object] = sys.stderr.write) -> None:
        self._write = write
        self._waiting: list[tuple[str, str, int, int, float]] = []

    def note(self, request_id: str, model: str, status: int, body_bytes: int, started: float) -> None:
        """Note one answer to a request that was submitted at ``started`` (``time.monotonic()``; 0: never)."""
        seconds = time.monotonic() - started if started else 0.0
        self._waiting.append((request_id, model, status, body_bytes, seconds))
        if len(self._waiting) >= MAX_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what was noted since the last time, with the time of writing."""
        if not self._waiting:
            return
        lines, self._waiting = self._waiting, []
        written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        encode = msgspec.json.encode
        self._write(
            "".join(
                encode(
                    {
                        "event": "access",
                        "timestamp": written,
                        "request_id": request_id,
                        "model": model,
                        "status": status,
                        "bytes": body_bytes,
                        "ms": round(seconds * 1e3, 3),
                    }
                ).decode()
                + "\n"
                for request_id, model, status, body_bytes, seconds in lines
            )
        )

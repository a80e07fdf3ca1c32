"""The log of decisions: who was let in or refused, to do what with which model, by which policy. No content.

A chain of hashes with a signed checkpoint at the end of each batch (``decision_file``): an edited, removed or
reordered line is found, and a cut is found by the next checkpoint or by one that was kept elsewhere.

A decision that repeats is not a line of its own: the first one is written at once, and those that follow
within ``REPEAT_S`` are one more line, which says how many they were.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

from cloister.errors import CloisterError, ConfigError
from cloister.kbs.chain import AuditEvent
from cloister.policy.cedar import Decision
from cloister.policy.requests import Action, Caller
from cloister.serve.access.decision_file import DecisionFile

REPEAT_S = 60.0
WRITE_S = 1.0
MAX_WAITING = 10_000
"""Decisions that are told apart at once; further ones are written as one line per action."""


@dataclass(frozen=True, slots=True)
class _Subject:
    caller: str
    action: str
    model: str
    version: str
    allowed: bool
    policy_ids: tuple[str, ...]
    reason: str

    def event(self, count: int, now: datetime) -> AuditEvent:
        return AuditEvent(
            kind="permitted" if self.allowed else "refused",
            time=now,
            subject=self.caller,
            resource=f"{self.model}/{self.version}" if self.version else self.model,
            claims={"action": self.action, "count": count},
            policy_ids=self.policy_ids,
            reason=self.reason,
        )


class DecisionLog:
    """Appends decisions to a file, in a thread of its own; safe to use from many threads.

    While the file cannot be written, the decisions wait in memory.
    """

    def __init__(
        self,
        path: Path,
        key: ed25519.Ed25519PrivateKey,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_bytes: int = 0,
        on_problem: Callable[[CloisterError], None] = lambda _: None,
    ) -> None:
        """Open the file; what is in it is checked first.

        Args:
            max_bytes: how long one file may get; 0 for any length.
            on_problem: is told once when the file cannot be written.
        Raises:
            AuditBroken, BadSignature: the chain in the file is broken, or another key's.
            ConfigError: it cannot be used.
        """
        self._clock, self._on_problem = clock, on_problem
        self._file = DecisionFile(path, key, now=clock(), max_bytes=max_bytes)
        self._lock = threading.Lock()
        self._new: dict[_Subject, int] = {}
        self._repeated: dict[_Subject, int] = {}
        self._since: dict[_Subject, datetime] = {}
        self._failing = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloister-decisions", daemon=True)
        self._thread.start()

    def record(
        self, caller: Caller, action: Action, model: str, version: str, decision: Decision, *, count: int = 1
    ) -> None:
        """Note a decision; it is on disk about a second later."""
        reason = "" if decision.allowed else decision.reason
        subject = _Subject(caller.name, action, model, version, decision.allowed, decision.policy_ids, reason)
        with self._lock:
            if subject in self._since:
                self._repeated[subject] = self._repeated.get(subject, 0) + count
            else:
                self._add(subject, count)

    def close(self) -> None:
        """Write what is left, and end."""
        self._ending.set()
        self._thread.join()
        self._flush(last=True)
        self._file.close()

    def _run(self) -> None:
        while not self._ending.wait(WRITE_S):
            self._flush()

    def _flush(self, *, last: bool = False) -> None:
        now = self._clock()
        with self._lock:
            new, self._new = self._new, {}
            over = [
                s for s, since in self._since.items() if last or (now - since).total_seconds() >= REPEAT_S
            ]
            for subject in over:
                del self._since[subject]
            repeated = {s: self._repeated.pop(s) for s in over if s in self._repeated}
        if not new and not repeated:
            return
        events = [subject.event(count, now) for subject, count in (*new.items(), *repeated.items())]
        try:
            self._file.append(events, now)
        except ConfigError as error:
            self._put_back(new, repeated)
            if not self._failing:
                self._on_problem(error)
            self._failing = True
            return
        self._failing = False
        if not last:
            with self._lock:
                room = max(0, MAX_WAITING - len(self._since))
                self._since.update(dict.fromkeys(list(new)[:room], now))

    def _put_back(self, *taken: Mapping[_Subject, int]) -> None:
        with self._lock:
            for counts in taken:
                for subject, count in counts.items():
                    self._add(subject, count)

    def _add(self, subject: _Subject, count: int) -> None:
        if len(self._new) >= MAX_WAITING and subject not in self._new:
            subject = _Subject("(many callers)", subject.action, "", "", subject.allowed, (), "")
        self._new[subject] = self._new.get(subject, 0) + count

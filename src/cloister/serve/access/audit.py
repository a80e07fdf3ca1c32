"""The log of decisions: who was let in or refused, to do what with which model, by which policy. No content.

JSON lines in the form of the broker's export (``cloister.kbs.audit_export``): a chain of hashes, and a signed
checkpoint at the end of each batch, so that an edited, removed or reordered line is found, and a cut is found
by the next checkpoint or by one that was kept elsewhere.

A decision that repeats is not a line of its own: the first one is written at once, and those that follow
within ``REPEAT_S`` are one more line, which says how many they were.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

from cloister.errors import ConfigError
from cloister.kbs.audit_export import FORMAT, read_open_log
from cloister.kbs.chain import GENESIS, AuditBroken, AuditEvent, Head, entry_after, hash_of
from cloister.kbs.checkpoints import Checkpoint
from cloister.policy.cedar import Decision
from cloister.policy.requests import Action, Caller

REPEAT_S = 60.0
WRITE_S = 1.0
MAX_WAITING = 10_000
"""Decisions that are told apart at once; further ones of that second are written as one line per action."""


@dataclass(frozen=True, slots=True)
class _Subject:
    caller: str
    action: str
    model: str
    version: str
    allowed: bool
    policy_ids: tuple[str, ...]
    reason: str


class DecisionLog:
    """Appends decisions to a file, in a thread of its own; safe to use from many threads."""

    def __init__(
        self,
        path: Path,
        key: ed25519.Ed25519PrivateKey,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open the file; what is in it is checked first.

        Raises:
            AuditBroken: the chain in the file is broken.
            ConfigError: it cannot be used.
        """
        self._key, self._clock = key, clock
        self._head = _resume(path, key)
        try:
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        if self._head == Head(0, GENESIS) and self._file.tell() == 0:
            self._file.write(_line({"format": FORMAT, "after": 0, "hash": GENESIS}))
        self._lock = threading.Lock()
        self._new: dict[_Subject, int] = {}
        self._repeated: dict[_Subject, int] = {}
        self._since: dict[_Subject, datetime] = {}
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
                if len(self._new) >= MAX_WAITING and subject not in self._new:
                    subject = _Subject("(many callers)", action, "", "", decision.allowed, (), "")
                self._new[subject] = self._new.get(subject, 0) + count

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
            ended = {
                s for s, since in self._since.items() if last or (now - since).total_seconds() >= REPEAT_S
            }
            repeated = {s: n for s, n in self._repeated.items() if s in ended}
            for subject in ended:
                del self._since[subject]
                self._repeated.pop(subject, None)
            if not last:
                self._since.update(dict.fromkeys(new, now))
        if not new and not repeated:
            return
        for subject, count in (*new.items(), *repeated.items()):
            self._append(subject, count, now)
        checkpoint = Checkpoint.sign(self._head.sequence, self._head.hash, now, self._key)
        self._file.write(_line({"checkpoint": checkpoint.to_mapping()}))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _append(self, subject: _Subject, count: int, now: datetime) -> None:
        model = f"{subject.model}/{subject.version}" if subject.version else subject.model
        event = AuditEvent(
            kind="permitted" if subject.allowed else "refused",
            time=now,
            subject=subject.caller,
            resource=model,
            claims={"action": subject.action, "count": count},
            policy_ids=subject.policy_ids,
            reason=subject.reason,
        )
        entry = entry_after(self._head, event)
        digest = hash_of(entry)
        document = asdict(entry)
        del document["hash"]
        self._file.write(_line({"entry": document, "hash": digest}))
        self._head = Head(entry.sequence, digest)


def _resume(path: Path, key: ed25519.Ed25519PrivateKey) -> Head:
    """Where an existing file ends; a last batch without its checkpoint was cut by a crash, and is kept."""
    if not path.exists() or path.stat().st_size == 0:
        return Head(0, GENESIS)
    try:
        with path.open(encoding="utf-8") as lines:
            return read_open_log(lines, key.public_key())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}") from error
    except AuditBroken as error:
        raise AuditBroken(f"{path}: {error.message}", hint="move the file away, and look into it") from error


def _line(document: object) -> str:
    return json.dumps(document, separators=(",", ":")) + "\n"

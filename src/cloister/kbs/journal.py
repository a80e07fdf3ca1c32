"""Group commit: the audit entries of requests that arrive together go to disk together.

An answer leaves only after its entry is committed, and a commit waits for the disk. So one thread writes for
everybody: whatever has come in while it waited becomes the next transaction, with one signature on the head
of the chain and one synchronisation. Under load that is many entries, on an idle broker one; nobody waits for
a batch to fill.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric import ed25519
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from cloister.errors import CloisterError, KeyUnavailable
from cloister.kbs.audit import AuditBroken, AuditEvent, extend, lock_head
from cloister.kbs.checkpoints import EVERY_S
from cloister.kbs.records import Database

MAX_BATCH = 256
T = TypeVar("T")
Decide = Callable[[Connection], tuple[AuditEvent, T | CloisterError]]


@dataclass(slots=True)
class _Job:
    decide: Decide[Any]
    done: Future[Any] = field(default_factory=Future)


class Journal:
    """Commits audit entries and hands out the answers that wait for them; safe to use from many threads."""

    def __init__(self, database: Database, key: ed25519.Ed25519PrivateKey) -> None:
        self._database = database
        self._key = key
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._last_sequence = 0
        self._last_checkpoint = time.monotonic()
        self.batches = 0
        """Transactions so far."""
        self.entries = 0
        """Entries in them."""
        self.seconds = 0.0
        """Time that they took."""

    def submit(self, decide: Decide[T]) -> Future[T]:
        """Have an entry written; the future answers once it is on disk.

        Args:
            decide: called in the writing transaction, after the audit log was locked; has to be quick.
                Returns the entry, and the answer that depends on it; an error as the answer is raised by the
                future, after its entry was committed too. If ``decide`` itself raises there is no entry.
        Raises:
            KeyUnavailable: by the future: the database does not answer; nothing was written.
        """
        job = _Job(decide)
        with self._starting:
            if self._closed:
                job.done.set_exception(KeyUnavailable("the broker is stopping"))
                return job.done
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cloister-journal", daemon=True)
                self._thread.start()
            self._jobs.put(job)
        return job.done

    def record(self, event: AuditEvent, error: CloisterError) -> Future[Any]:
        """Have a refusal written: the future raises ``error`` once it is on disk."""
        return self.submit(lambda _connection: (event, error))

    def close(self) -> None:
        """Write what is waiting, then end the thread."""
        with self._starting:
            self._closed = True
            self._jobs.put(None)
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    self._commit(batch)
                    return
                batch.append(following)
            self._commit(batch)

    def _commit(self, batch: list[_Job]) -> None:
        began = time.monotonic()
        answers: list[tuple[_Job, Any]] = []
        try:
            with self._database.write_connection() as connection:
                written = self._write(connection, batch, answers)
        except Exception as error:  # noqa: BLE001 (whatever it was, everybody who waits has to learn of it)
            for job in batch:
                _raise(job, error)
            return
        self.batches += 1
        self.entries += written
        self.seconds += time.monotonic() - began
        for job, answer in answers:
            if isinstance(answer, BaseException):
                _raise(job, answer)
            else:
                with contextlib.suppress(InvalidStateError):  # its request was given up meanwhile
                    job.done.set_result(answer)

    def _write(self, connection: Connection, batch: list[_Job], answers: list[tuple[_Job, Any]]) -> int:
        head = lock_head(connection, self._key.public_key())
        if head.sequence < self._last_sequence:
            raise AuditBroken(
                f"the audit log went back from entry {self._last_sequence} to entry {head.sequence}"
            )
        events: list[AuditEvent] = []
        for job in batch:
            try:
                event, answer = job.decide(connection)
            except (SQLAlchemyError, sqlite3.Error):
                raise
            except Exception as error:  # noqa: BLE001 (one request's fault is not the others')
                answers.append((job, error))
                continue
            events.append(event)
            answers.append((job, answer))
        due = bool(events) and began_before(self._last_checkpoint, EVERY_S)
        extend(connection, head, events, self._key, checkpoint=due)
        self._last_sequence = head.sequence + len(events)
        if due:
            self._last_checkpoint = time.monotonic()
        return len(events)


def began_before(moment: float, seconds: float) -> bool:
    """Whether a moment of the monotonic clock lies that long ago."""
    return time.monotonic() - moment >= seconds


def _raise(job: _Job, error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        job.done.set_exception(error)

"""Group commit: the audit entries of requests that arrive together go to disk together.

An answer leaves only after its entry is committed, and a commit waits for the disk. So whatever comes in
while one is under way becomes the next transaction, with one signature on the head of the chain and one
synchronisation. Under load that is many entries, on an idle broker one; nobody waits for a batch to fill.

The waiting is a thread's. The entries of a local database are written by the event loop, where one is
attached: each call into SQLite gives the interpreter away, and a thread would have to wait for it again each
time.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections import deque
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
from cloister.kbs.database import Database, Transaction, translated

MAX_BATCH = 256
T = TypeVar("T")
Decide = Callable[[Connection], tuple[AuditEvent, T | CloisterError]]


@dataclass(slots=True)
class _Job:
    decide: Decide[Any]
    done: Future[Any] = field(default_factory=Future)


@dataclass(slots=True)
class _Batch:
    """What one transaction is for."""

    jobs: list[_Job]
    began: float = field(default_factory=time.monotonic)
    answers: list[tuple[_Job, Any]] = field(default_factory=list)
    entries: int = 0
    transaction: Transaction | None = None
    """Open, and only to be committed, where the event loop has written the entries."""


class Journal:
    """Commits audit entries and hands out the answers that wait for them; safe to use from many threads."""

    def __init__(self, database: Database, key: ed25519.Ed25519PrivateKey) -> None:
        self._database = database
        self._key = key
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._busy = False
        self._handed_over = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._work: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._call_in_loop: Callable[[Callable[[], None]], object] | None = None
        self._loop_thread = 0
        self._last_sequence = 0
        self._last_checkpoint = time.monotonic()
        self.batches = 0
        """Transactions so far."""
        self.entries = 0
        """Entries in them."""
        self.seconds = 0.0
        """Time that they took."""

    def attach(self, call_in_loop: Callable[[Callable[[], None]], object]) -> None:
        """Write from the event loop of the calling thread.

        Args:
            call_in_loop: ``call_soon_threadsafe`` of that loop.
        """
        if self._database.local:
            self._call_in_loop, self._loop_thread = call_in_loop, threading.get_ident()

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
        with self._lock:
            if self._closed:
                job.done.set_exception(KeyUnavailable("the broker is stopping"))
                return job.done
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cloister-journal", daemon=True)
                self._thread.start()
            self._waiting.append(job)
            if self._busy:
                return job.done
            self._busy = True
            batch = self._take()
        if self._call_in_loop is not None and threading.get_ident() == self._loop_thread:
            self._write_here(batch)
        else:
            self._work.put(batch)
        return job.done

    def record(self, event: AuditEvent, error: CloisterError) -> Future[Any]:
        """Have a refusal written: the future raises ``error`` once it is on disk."""
        return self.submit(lambda _connection: (event, error))

    def close(self) -> None:
        """Write what is waiting, then end the thread."""
        with self._lock:
            self._closed = True
            self._call_in_loop = None
            thread, self._thread = self._thread, None
            if self._handed_over:  # to an event loop that does nothing more while it waits here
                self._handed_over = False
                self._work.put(self._take())
        if thread is not None:
            self._work.put(None)
            thread.join()

    def _take(self) -> _Batch:
        jobs = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
        return _Batch(jobs)

    def _run(self) -> None:
        ending = False
        while not ending:
            batch = self._work.get()
            ending = batch is None
            while batch is not None:
                self._finish(batch)
                batch = self._next()

    def _next(self) -> _Batch | None:
        """The batch that follows, unless nothing waits or the event loop begins it."""
        with self._lock:
            if not self._waiting:
                self._busy = False
                return None
            if self._call_in_loop is not None:
                self._handed_over = True
                try:
                    self._call_in_loop(self._continue_here)
                except RuntimeError:  # the loop was closed
                    self._handed_over = False
                else:
                    return None
            return self._take()

    def _continue_here(self) -> None:
        with self._lock:
            if not self._handed_over:
                return
            self._handed_over = False
            batch = self._take()
        self._write_here(batch)

    def _write_here(self, batch: _Batch) -> None:
        """Write the entries now and have the thread commit them; it does both if somebody else writes."""
        try:
            batch.transaction = self._database.begin_at_once()
            if batch.transaction is not None:
                with translated():
                    batch.entries = self._write(batch.transaction.connection, batch)
        except Exception as error:  # noqa: BLE001 (whatever it was, everybody who waits has to learn of it)
            if batch.transaction is not None:
                batch.transaction.roll_back()
            _fail(batch, error)
            batch = _Batch([])
        self._work.put(batch)

    def _finish(self, batch: _Batch) -> None:
        if not batch.jobs:
            return
        try:
            if batch.transaction is not None:
                batch.transaction.commit()
            else:
                with self._database.write_connection() as connection:
                    batch.entries = self._write(connection, batch)
        except Exception as error:  # noqa: BLE001 (as above)
            _fail(batch, error)
            return
        self.batches += 1
        self.entries += batch.entries
        self.seconds += time.monotonic() - batch.began
        for job, answer in batch.answers:
            if isinstance(answer, BaseException):
                _raise(job, answer)
            else:
                with contextlib.suppress(InvalidStateError):  # its request was given up meanwhile
                    job.done.set_result(answer)

    def _write(self, connection: Connection, batch: _Batch) -> int:
        head = lock_head(connection, self._key.public_key())
        if head.sequence < self._last_sequence:
            raise AuditBroken(
                f"the audit log went back from entry {self._last_sequence} to entry {head.sequence}"
            )
        events: list[AuditEvent] = []
        for job in batch.jobs:
            try:
                event, answer = job.decide(connection)
            except (SQLAlchemyError, sqlite3.Error):
                raise
            except Exception as error:  # noqa: BLE001 (one request's fault is not the others')
                batch.answers.append((job, error))
                continue
            events.append(event)
            batch.answers.append((job, answer))
        due = bool(events) and began_before(self._last_checkpoint, EVERY_S)
        extend(connection, head, events, self._key, checkpoint=due)
        self._last_sequence = head.sequence + len(events)
        if due:
            self._last_checkpoint = time.monotonic()
        return len(events)


def began_before(moment: float, seconds: float) -> bool:
    """Whether a moment of the monotonic clock lies that long ago."""
    return time.monotonic() - moment >= seconds


def _fail(batch: _Batch, error: BaseException) -> None:
    for job in batch.jobs:
        _raise(job, error)


def _raise(job: _Job, error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        job.done.set_exception(error)

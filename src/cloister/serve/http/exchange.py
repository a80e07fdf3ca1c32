"""One hot request of a connection, from its submission to its answer's last byte."""

from __future__ import annotations

import asyncio

from cloister.serve.http.gateway import Sealer
from cloister.serve.jobs import Answer, Job
from cloister.serve.stats import ModelStats


class Exchange(Job, eq=False, kw_only=True):
    """A job that knows its place in its connection. Answers that may not be written yet wait in it."""

    stats: ModelStats | None = None
    """Of the model that it was submitted to."""
    close: bool = False
    """The caller asked for the connection to be closed after the answer."""
    answers: list[Answer] | None = None
    """Parts that wait for earlier requests' answers, or for the rest to be sealed with."""
    held_bytes: int = 0
    """How long these are."""
    done: bool = False
    """The last part has come."""
    own: bool = False
    """The answer is the server's, not a worker's, whose headers need a check."""
    streaming: bool = False
    """The head of a chunked response has gone out."""
    crypto_s: float = 0.0
    """What opening it took."""
    sealer: Sealer | None = None
    """What the answer is sealed with; None for an answer in the clear."""
    streamed_bytes: int = 0
    task: asyncio.Task[None] | None = None
    """What makes an answer that no worker makes."""

    @property
    def model(self) -> str:
        """Name of the model; empty where none was asked."""
        return self.stats.model if self.stats is not None else ""

    def abandon(self) -> None:
        """The caller has gone."""
        self.cancel()
        if self.task is not None:
            self.task.cancel()

"""One whole request on its way to what answers it: a model's queue, or what is inside its seal.

The same in a process that reads its callers' connections itself and in one that gets its requests from
frontend processes.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from cloister.errors import CloisterError
from cloister.serve.http.errors import render_failure
from cloister.serve.http.exchange import Exchange
from cloister.serve.http.front import Front
from cloister.serve.http.heads import Target, find_priority
from cloister.serve.http.messages import Response
from cloister.serve.http.oip import in_protocols_form
from cloister.serve.http.ways import Way
from cloister.serve.oip.marks import is_marked


class Asking:
    """Submits exchanges. Answers of workers go where the exchange says, the server's own to ``_complete``."""

    loop: asyncio.AbstractEventLoop
    _front: Front

    if TYPE_CHECKING:

        def _complete(self, exchange: Exchange, response: Response) -> None:
            """Take an answer that no worker made."""

    def _submit(self, target: Target, exchange: Exchange) -> None:
        exchange.stats = target.stats
        try:
            target.submit(exchange)
        except CloisterError as error:
            refusal = render_failure(error)
            oip = is_marked(exchange.headers)
            self._complete(exchange, in_protocols_form(refusal) if oip else refusal)

    def _open(self, exchange: Exchange, capsule: bytes) -> None:
        """A sealed request: its answer will be sealed like it."""
        front = self._front
        gateway = front.api.gateway
        assert gateway is not None
        started = time.perf_counter()
        opened = gateway.open(capsule)
        exchange.crypto_s = time.perf_counter() - started
        if isinstance(opened, Response):
            self._complete(exchange, opened)
            return
        inner = opened.inner
        exchange.sealer = opened.sealer
        if isinstance(inner, Response):
            self._complete(exchange, inner)
            return
        supervisor = None
        if inner.method in ("POST", "PUT") and len(inner.content) <= front.api.body_limit(inner.path):
            supervisor = front.api.target(Way.SEALED, inner.method, inner.path)
        if supervisor is not None and front.api.admit(Way.SEALED, supervisor, inner.headers) is not None:
            supervisor = None
        if supervisor is None:
            exchange.task = self.loop.create_task(
                self._answer_inside(exchange, front.api.handle_sealed(inner))
            )
            return
        exchange.headers = front.api.model_headers(inner.headers)
        exchange.query, exchange.body = inner.query, inner.content
        exchange.priority = find_priority(inner.headers)
        self._submit(supervisor, exchange)

    async def _answer_inside(self, exchange: Exchange, answering: Any) -> None:
        """A sealed request for something else than a prediction."""
        response: Response = await answering
        try:
            response.content = await response.whole()
        except CloisterError as error:  # it broke off, and nothing of it has gone out
            response = render_failure(error)
        self._complete(exchange, response)

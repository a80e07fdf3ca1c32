"""AsyncClient for tests that block, so that one list of tests tries both clients."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

import cloister
from cloister.attest.service import VerifiedService
from cloister.client.answer import Answer


class BlockingAsyncClient:
    """An AsyncClient in an event loop of its own; any thread may ask."""

    def __init__(self, url: str, **options: Any) -> None:
        self._stack = ExitStack()
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal())
        try:
            self._client = self._portal.call(lambda: cloister.AsyncClient(url, **options))
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(self._portal.call, self._client.close)

    def verify(self) -> VerifiedService:
        """As Client.verify."""
        return self._portal.call(self._client.verify)

    def predict(self, model: str, data: Any, **options: Any) -> Answer:
        """As Client.predict."""
        return self._portal.call(lambda: self._client.predict(model, data, **options))

    def ping(self) -> Answer:
        """As Client.ping."""
        return self._portal.call(self._client.ping)

    def close(self) -> None:
        """Close the client, and end the loop."""
        self._stack.close()

"""``grpc.health.v1.Health``: the server, or one model by its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc import StatusCode

from cloister.errors import ModelNotFound
from cloister.serve.grpc.calls import (
    TOKEN_REFUSED,
    Admit,
    Asked,
    CallFailed,
    Context,
    admit_all,
    certificate_of,
    metadata_of,
)
from cloister.serve.grpc.messages import HEALTH, message
from cloister.serve.registry import Registry

WATCH_S = 1.0
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3

_Response = message(f"{HEALTH}.HealthCheckResponse")


class HealthService:
    """Whether there is a worker."""

    def __init__(self, registry: Registry, admit: Admit) -> None:
        self._registry = registry
        self._admit = admit

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802 (the service's own names)
        """The state now."""
        self._check(request, context)
        state = self._state(request.service)
        if state == SERVICE_UNKNOWN:
            raise ModelNotFound(f"Model not found: {request.service[:128]}")
        return _Response(status=state)

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802
        """The state now, and again whenever it has changed."""
        self._check(request, context)
        told = 0
        while True:
            state = self._state(request.service)
            if state != told:
                yield _Response(status=state)
                told = state
            await asyncio.sleep(WATCH_S)

    def _check(self, request: Any, context: Context) -> None:
        """A probe has no token, and is told of the server only; which models there are is for callers."""
        if not request.service or self._admit is admit_all:
            return
        asked = Asked("Check", request.service, "")
        if self._admit(asked, metadata_of(context), certificate_of(context)) is not None:
            raise CallFailed(StatusCode.PERMISSION_DENIED, TOKEN_REFUSED)

    def _state(self, name: str) -> int:
        if not name:
            return SERVING if self._registry.healthy else NOT_SERVING
        try:
            ready = self._registry.find(name).supervisor.ready
        except ModelNotFound:
            return SERVICE_UNKNOWN
        return SERVING if ready else NOT_SERVING

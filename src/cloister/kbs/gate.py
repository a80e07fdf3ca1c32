"""What every request to the broker passes first: the rate limit of those without a credential, and counters.

Challenges and evidence come from anybody, so their number per client address is limited. Everything else
needs a credential: of it only the refused ones are counted, and an address that has sent too many has to
wait. A TEE that attested is not held up by others behind its address who ask for challenges.
"""

from __future__ import annotations

import math
import time

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloister.kbs import protocol
from cloister.kbs.limits import RateLimit
from cloister.kbs.metrics import BrokerMetrics

_OPEN = {"/kbs/v0/auth": "auth", "/kbs/v0/attest": "attest"}
_RESOURCE = "/kbs/v0/resource/"
_REFUSED = frozenset({401, 403})


class Gate:
    """ASGI middleware.

    Args:
        per_s: requests per second and client address; 0 allows any number.
    """

    def __init__(self, app: ASGIApp, *, metrics: BrokerMetrics, per_s: float) -> None:
        self._app = app
        self._metrics = metrics
        self._asked = RateLimit(per_s)
        self._failed = RateLimit(per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        client = scope.get("client")
        address = client[0] if client else ""
        step = step_of(scope["path"], scope["method"])
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 429:
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        free = step in ("auth", "attest")
        wait_s = self._asked.wait_s(address, began) if free else self._failed.peek_s(address, began)
        try:
            if wait_s and step != "other":
                self._metrics.throttled += 1
                await _too_many(wait_s)(scope, receive, note)
            else:
                await self._app(scope, receive, note)
        finally:
            if status in _REFUSED and not free:
                self._failed.wait_s(address, began)
            self._metrics.count(step, status, began)


def step_of(path: str, method: str) -> str:
    """Which step of the protocol a request is; administration is ``admin``, all else ``other``."""
    if path in _OPEN:
        return _OPEN[path]
    if path.startswith(_RESOURCE) and method == "GET":
        return "resource"
    return "admin" if path.startswith(("/kbs/v0/", "/cloister/v0/")) else "other"


def _too_many(wait_s: float) -> Response:
    body = protocol.render(protocol.ErrorInformation.of("TooManyRequests", "too many requests: try later"))
    seconds = str(max(1, math.ceil(wait_s)))
    return Response(body, 429, {"Retry-After": seconds}, media_type="application/json")

"""``GET /.well-known/cloister/evidence?nonce=``: fresh evidence for one caller's nonce."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs

from cloister.attest.model import Attester
from cloister.attest.service import ServiceIdentity, make_bundle
from cloister.errors import MalformedInput, Overloaded
from cloister.serve.http.messages import JSON, Request, Response

MIN_NONCE_BYTES = 16
MAX_NONCE_BYTES = 64
MAX_WAITING = 64
"""Quotes are slow and made one after the other; who comes later than this is told to retry."""
KEPT_S = 10.0
"""How long the same nonce gets the same bundle, if nothing that it binds has changed."""
MAX_KEPT = 256


class EvidenceEndpoint:
    """Makes bundles in a thread of its own, so that a slow quoting service delays nobody else.

    Args:
        identity: what the evidence binds at the moment; models come and go.
    """

    def __init__(
        self,
        attester: Attester,
        identity: Callable[[], ServiceIdentity],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attester = attester
        self._identity = identity
        self._clock = clock
        self._waiting = 0
        self._made: OrderedDict[bytes, tuple[float, ServiceIdentity, asyncio.Task[bytes]]] = OrderedDict()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="evidence")

    async def answer(self, request: Request) -> Response:
        """A bundle over the request's nonce.

        Raises:
            MalformedInput: no nonce, or not one of 16 to 64 bytes in base64url.
            Overloaded: too many are waiting.
            KeyUnavailable, TransportError: the hardware gave no evidence.
        """
        nonce = parse_nonce(request.query)
        # Shielded: others may wait for the same bundle when this caller leaves.
        raw = await asyncio.shield(self._bundle(nonce))
        return Response(200, [JSON, (b"cache-control", b"no-store")], raw)

    def _bundle(self, nonce: bytes) -> asyncio.Task[bytes]:
        """The bundle that was made for this nonce a moment ago, or a new one."""
        now, identity = self._clock(), self._identity()
        while self._made and next(iter(self._made.values()))[0] <= now:
            self._made.popitem(last=False)
        known = self._made.get(nonce)
        if known is not None and known[1] == identity and not _failed(known[2]):
            return known[2]
        if self._waiting >= MAX_WAITING:
            raise Overloaded("too many requests for evidence are waiting")
        self._waiting += 1
        task = asyncio.get_running_loop().create_task(self._make(identity, nonce))
        self._made.pop(nonce, None)
        self._made[nonce] = (now + KEPT_S, identity, task)
        if len(self._made) > MAX_KEPT:
            self._made.popitem(last=False)
        return task

    async def _make(self, identity: ServiceIdentity, nonce: bytes) -> bytes:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, make_bundle, self._attester, identity, nonce)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def parse_nonce(query: bytes) -> bytes:
    """The ``nonce`` of a query string.

    Raises:
        MalformedInput: missing, given twice, not base64url (RFC 4648 section 5), or of the wrong length.
    """
    try:
        values = parse_qs(query.decode("ascii"), max_num_fields=16).get("nonce", [])
        if len(values) != 1:
            raise MalformedInput(f"expected one nonce in the query, found {len(values)}")
        text = values[0].rstrip("=")
        nonce = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise MalformedInput("nonce is not base64url") from error
    if not MIN_NONCE_BYTES <= len(nonce) <= MAX_NONCE_BYTES:
        raise MalformedInput(f"nonce has {len(nonce)} bytes, expected {MIN_NONCE_BYTES} to {MAX_NONCE_BYTES}")
    return nonce

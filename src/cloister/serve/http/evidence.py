"""``GET /.well-known/cloister/evidence?nonce=``: fresh evidence for one caller's nonce."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import parse_qs

from cloister.attest.model import Attester
from cloister.attest.service import ServiceIdentity, make_bundle
from cloister.errors import MalformedInput, Overloaded
from cloister.serve.http.messages import JSON, Request, Response
from cloister.serve.refusals import Refusal

MIN_NONCE_BYTES = 16
MAX_NONCE_BYTES = 64
MAX_WAITING = 64
MAX_WAIT_S = 30.0
"""Quotes are slow and made one after the other: who would wait longer than this, or behind more than so many,
is told when to come again."""
KEPT_S = 10.0
"""How long the same nonce gets the same bundle, if nothing that it binds has changed."""
MAX_KEPT = 256
_WEIGHT = 0.3
"""Of the latest quote in the estimate of how long one takes."""


class EvidenceBusy(Refusal, Overloaded):
    """More evidence is asked for than can be made."""

    status = 503
    kind = "ServiceUnavailableException"

    def __init__(self, wait_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(f"too many wait for evidence: ask again after {self.retry_after_s} s")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"retry-after", b"%d" % self.retry_after_s)]


@dataclass(slots=True, eq=False)
class _Bundle:
    """One bundle: wanted, being made, or made a moment ago."""

    identity: ServiceIdentity
    until_s: float
    made: Future[bytes]
    callers: int = 0

    @property
    def failed(self) -> bool:
        return self.made.cancelled() or (self.made.done() and self.made.exception() is not None)


class EvidenceEndpoint:
    """Makes bundles in a thread of its own, so that a slow quoting service delays nobody else.

    Each nonce needs a quote of its own, and hardware makes one at a time. So their number is bounded by the
    time that they take; what nobody waits for any more is not made.

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
        self._bundles: OrderedDict[bytes, _Bundle] = OrderedDict()
        self._waiting = 0
        self._quote_s = 0.0
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="evidence")

    async def answer(self, request: Request) -> Response:
        """A bundle over the request's nonce.

        Raises:
            MalformedInput: no nonce, or not one of 16 to 64 bytes in base64url.
            EvidenceBusy: too many are waiting.
            KeyUnavailable, TransportError: the hardware gave no evidence.
        """
        nonce = parse_nonce(request.query)
        bundle = self._find(nonce) or self._begin(nonce)
        bundle.callers += 1
        try:
            # Shielded: others may wait for the same bundle when this caller leaves.
            raw = await asyncio.shield(asyncio.wrap_future(bundle.made))
        except asyncio.CancelledError:
            if bundle.callers == 1:
                bundle.made.cancel()  # which does nothing to a quote that is being made
            raise
        finally:
            bundle.callers -= 1
        return Response(200, [JSON, (b"cache-control", b"no-store")], raw)

    def _find(self, nonce: bytes) -> _Bundle | None:
        """The bundle that was wanted for this nonce a moment ago, if it still speaks of what is so."""
        now = self._clock()
        while self._bundles and next(iter(self._bundles.values())).until_s <= now:
            self._bundles.popitem(last=False)
        known = self._bundles.get(nonce)
        return (
            known if known is not None and known.identity == self._identity() and not known.failed else None
        )

    def _begin(self, nonce: bytes) -> _Bundle:
        wait_s = self._waiting * self._quote_s
        if self._waiting >= MAX_WAITING or wait_s > MAX_WAIT_S:
            raise EvidenceBusy(wait_s)
        identity = self._identity()
        self._waiting += 1
        made = self._threads.submit(self._make, identity, nonce)
        loop = asyncio.get_running_loop()
        made.add_done_callback(lambda _: _call_soon(loop, self._count_down))
        bundle = _Bundle(identity, self._clock() + KEPT_S, made)
        self._bundles.pop(nonce, None)
        self._bundles[nonce] = bundle
        if len(self._bundles) > MAX_KEPT:
            self._bundles.popitem(last=False)
        return bundle

    def _make(self, identity: ServiceIdentity, nonce: bytes) -> bytes:
        started = self._clock()
        try:
            return make_bundle(self._attester, identity, nonce)
        finally:
            took_s = self._clock() - started
            self._quote_s += (took_s - self._quote_s) * (_WEIGHT if self._quote_s else 1.0)

    def _count_down(self) -> None:
        self._waiting -= 1

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended before the quote
        loop.call_soon_threadsafe(function)


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

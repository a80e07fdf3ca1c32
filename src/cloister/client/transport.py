"""An httpx transport that verifies a service, then seals every request to the key it proved.

Put it under any httpx client and that client speaks sealed::

    httpx.Client(transport=OhttpTransport(url, reference_values=values), base_url=url)

Method, path, headers and content travel inside the capsule (RFC 9458); outside there is one POST to the
gateway. Answers are whole: a cut or changed one is an error, never a short answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import VerifiedService
from cloister.client.channel import Channel, check_url, open_channel, reaching
from cloister.errors import (
    CloisterError,
    MalformedInput,
    Overloaded,
    Replayed,
    RequestTooLarge,
    TransportError,
    UnknownKeyConfig,
)
from cloister.ohttp import bhttp
from cloister.ohttp.capsule import KEY_PROBLEM, REQUEST_TYPE, RESPONSE_TYPE, seal_request
from cloister.ohttp.replay import render_date

GATEWAY_PATH = "/.well-known/ohttp-gateway"

# RFC 9292, section 3.6: fields about a connection are left out; the authority stands in the control data.
_NOT_SEALED = frozenset(
    (
        b"connection",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"date",
    )
)


class OhttpTransport(httpx.BaseTransport):
    """Sends nothing to a service that has not proved itself, and everything sealed to one that has.

    Verifies on first use, again when the last verification is older than ``max_age_s``, and once more when
    the service no longer knows its key or has another certificate, as after a restart. Errors are this
    package's own. Safe to share between threads.
    """

    def __init__(
        self,
        url: str,
        *,
        reference_values: ReferenceValues,
        roots: Sequence[x509.Certificate] | None = None,
        max_age_s: float = 300.0,
        timeout_s: float = 60.0,
    ) -> None:
        self.url = check_url(url)
        self._reference_values = reference_values
        self._roots = roots
        self._max_age_s = max_age_s
        self._timeout_s = timeout_s
        self._renewing = threading.Lock()
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._users: Counter[Channel] = Counter()

    def verify(self) -> VerifiedService:
        """Verify now, whatever the age of the last verification.

        Raises:
            VerificationError, PolicyDenied, MalformedInput, TransportError: as ``open_channel``.
        """
        return self._renew(self._channel).service

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Seal ``request``, send it, open the answer."""
        content = request.read()
        with self._using() as channel:
            response = self._exchange(channel, request, content)
        if response is None:
            with self._using(instead_of=channel) as channel:
                response = self._exchange(channel, request, content)
        if response is None:
            raise UnknownKeyConfig(
                "the service does not know the key that it was just verified with",
                hint="something between may answer in its place, or several servers share one address",
            )
        headers = [(name, value) for name, value in response.headers if name not in _NOT_SEALED]
        return httpx.Response(response.status, headers=headers, content=response.content, request=request)

    def close(self) -> None:
        """Close every connection that no request is using; the others close with their request."""
        self._replace(None)

    def _current(self) -> Channel:
        channel = self._channel
        if channel is not None and time.monotonic() - channel.verified_at_s < self._max_age_s:
            return channel
        return self._renew(channel)

    def _renew(self, stale: Channel | None) -> Channel:
        """A new channel in place of ``stale``, or the one that another thread has made meanwhile."""
        with self._renewing:
            if self._channel is not None and self._channel is not stale:
                return self._channel
            # Forgotten before it is replaced: if verification fails, the next request must not use it.
            self._replace(None)
            channel = open_channel(
                self.url,
                reference_values=self._reference_values,
                roots=self._roots,
                timeout_s=self._timeout_s,
            )
            self._replace(channel)
            return channel

    def _replace(self, channel: Channel | None) -> None:
        with self._lock:
            former, self._channel = self._channel, channel
            idle = former is not None and not self._users[former]
        if former is not None and idle:
            former.close()

    @contextmanager
    def _using(self, *, instead_of: Channel | None = None) -> Iterator[Channel]:
        """The current channel, kept open while in use."""
        channel = self._acquire(instead_of)
        try:
            yield channel
        finally:
            with self._lock:
                self._users[channel] -= 1
                idle = not self._users[channel]
                if idle:
                    del self._users[channel]
                close = idle and channel is not self._channel
            if close:
                channel.close()

    def _acquire(self, stale: Channel | None) -> Channel:
        while True:
            channel = self._current() if stale is None else self._renew(stale)
            with self._lock:
                if channel is self._channel:
                    self._users[channel] += 1
                    return channel
            stale = None  # another thread replaced it in between

    def _exchange(self, channel: Channel, request: httpx.Request, content: bytes) -> bhttp.Response | None:
        """The opened answer; None if the service has other keys than it was verified with."""
        message = bhttp.render_request(_to_bhttp(request, content))
        capsule, opener = seal_request(channel.key_config, message)
        timeouts = request.extensions.get("timeout", {"timeout": self._timeout_s})
        try:
            with reaching(self.url):
                answer = channel.http.post(
                    GATEWAY_PATH,
                    content=capsule,
                    headers={"content-type": REQUEST_TYPE, "accept": RESPONSE_TYPE},
                    timeout=httpx.Timeout(**timeouts),
                )
        except TransportError as error:
            # The handshake failed, so that nothing was sent. After a restart the service has another key.
            if _is_other_certificate(error):
                return None
            raise
        if answer.status_code == httpx.codes.OK and answer.headers.get("content-type") == RESPONSE_TYPE:
            return bhttp.parse_response(opener.open(answer.content))
        if _is_key_problem(answer):
            return None
        raise _unsealed(answer, self.url)


def _to_bhttp(request: httpx.Request, content: bytes) -> bhttp.Request:
    try:
        # The date is ours, so that the gateway can refuse a replay however late it comes.
        headers = [(b"date", render_date(datetime.now(UTC)))]
        headers += [
            (name.lower(), value) for name, value in request.headers.raw if name.lower() not in _NOT_SEALED
        ]
        return bhttp.Request(
            method=request.method.encode("ascii"),
            scheme=b"https",
            authority=request.url.netloc,
            path=request.url.raw_path,
            headers=tuple(headers),
            content=content,
        )
    except UnicodeEncodeError as error:
        raise MalformedInput("request method: not ASCII") from error


def _is_other_certificate(error: TransportError) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_key_problem(answer: httpx.Response) -> bool:
    """Whether the gateway says, outside of any sealing, that it has another key (RFC 9458, section 5.3)."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return False
    try:
        problem = json.loads(answer.content)
    except ValueError:
        return False
    return isinstance(problem, dict) and problem.get("type") == KEY_PROBLEM


def _unsealed(answer: httpx.Response, url: str) -> CloisterError:
    """What an answer means that does not come from inside the service; nothing in it is authentic."""
    status = answer.status_code
    if status == httpx.codes.CONFLICT:
        return Replayed("the gateway has seen this sealed request before")
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return RequestTooLarge("the gateway refuses a request of this size")
    if status in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
        return Overloaded(
            f"the gateway is not accepting requests: HTTP status {status}", hint="try again later"
        )
    return TransportError(
        f"{url} answered without sealing: HTTP status {status}",
        hint="is there a proxy that changes requests?",
    )

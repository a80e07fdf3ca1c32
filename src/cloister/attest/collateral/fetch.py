"""HTTP to a vendor's service, with every length, time and target bounded. The only module here that connects.

What comes back is signed by its vendor and verified later, so TLS is not what makes it true. It keeps others
from seeing which platforms are asked for, and from answering with older collateral that has not expired yet.
Plain HTTP is therefore taken to this machine only.
"""

from __future__ import annotations

import ipaddress
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from cloister.errors import ConfigError, TransportError

MAX_BODY_BYTES = 512 * 1024
MAX_REDIRECTS = 3
ATTEMPTS = 4
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 10.0
_BUSY = frozenset({429, 503})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class NotKnown(TransportError):
    """The service was reached and says that it has no such thing (404)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer with status 200."""

    where: str
    """Host and path, for messages."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


Get = Callable[[str], Answer]
"""What a session does: URL to answer; raises TransportError."""


class HttpFetcher:
    """Fetches from vendors' services.

    Args:
        timeout_s: for each request, from its beginning to the last byte.
        ca: PEM file that TLS is checked against; None means the system's authorities.
        sleep: how to wait between attempts.
    Raises:
        ConfigError: ``ca`` cannot be read, or a time that is not positive.
    """

    def __init__(
        self, *, timeout_s: float = 20.0, ca: Path | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"the timeout for collateral must be positive, found {timeout_s}")
        self._timeout_s = timeout_s
        self._sleep = sleep
        try:
            self._tls = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot read the certificate {ca} of the collateral service") from error
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2

    @contextmanager
    def session(self) -> Iterator[Get]:
        """Connections that several requests share.

        Yields:
            A function from URL to answer. It raises NotKnown for 404, TransportError for all else that is
            not a complete answer.
        """
        # No proxy, password file or authority is taken from the environment.
        with httpx.Client(verify=self._tls, timeout=self._timeout_s, trust_env=False) as client:
            yield lambda url: self._get(client, url)

    def _get(self, client: httpx.Client, url: str) -> Answer:
        for attempt in range(ATTEMPTS):
            status, headers, body = self._follow(client, url)
            if status not in _BUSY:
                break
            if attempt < ATTEMPTS - 1:
                self._sleep(_wait_s(headers.get("retry-after", ""), attempt))
        where = _where(url)
        if status == 200:
            return Answer(where, headers, body)
        if status == 404:
            raise NotKnown(f"{where} answered 404: the service does not know it")
        if status in _BUSY:
            raise TransportError(
                f"{where} answered {status} {ATTEMPTS} times: the service is busy", hint="try again later"
            )
        raise TransportError(f"{where} answered with HTTP status {status}")

    def _follow(self, client: httpx.Client, url: str) -> tuple[int, dict[str, str], bytes]:
        """One request, and the redirects within its own origin."""
        here = url
        for _ in range(MAX_REDIRECTS + 1):
            status, headers, body = self._request(client, here)
            if status not in _REDIRECTS:
                return status, headers, body
            try:
                target = str(httpx.URL(here).join(headers.get("location", "")))
                same = _origin(target) == _origin(here)
            except (httpx.InvalidURL, ValueError) as error:
                raise TransportError(f"{_where(url)} redirects to something that is not a URL") from error
            if not same:
                raise TransportError(f"{_where(url)} redirects to another host: refused")
            here = target
        raise TransportError(f"{_where(url)} redirects more than {MAX_REDIRECTS} times")

    def _request(self, client: httpx.Client, url: str) -> tuple[int, dict[str, str], bytes]:
        # Uncompressed, so that what is counted is what arrives.
        deadline = time.monotonic() + self._timeout_s
        try:
            with client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                if response.status_code != 200:
                    return response.status_code, headers, b""
                if headers.get("content-encoding", "identity") != "identity":
                    raise TransportError(f"{_where(url)} answers in a compressed form that was not asked for")
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise TransportError(f"{_where(url)} answers with more than {MAX_BODY_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise TransportError(f"{_where(url)} takes longer than {self._timeout_s:g} s")
                return 200, headers, bytes(body)
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            raise TransportError(
                f"{_where(url)} cannot be reached: {cause}", hint="see [collateral] in the settings"
            ) from error


def check_base(url: str, setting: str) -> str:
    """A base URL without its last slash.

    Raises:
        ConfigError: not https (or http to this machine), or more than scheme, host, port and path.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"{setting} is not a URL: {url[:80]!r}") from error
    plain = parts.username is None and parts.password is None and not parts.query and not parts.fragment
    if not host or port == 0 or not plain:
        raise ConfigError(f"{setting} must be a URL of scheme, host and path only, found {_where(url)!r}")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ConfigError(
            f"{setting} must begin with https://, found {url[:80]!r}",
            hint="plain HTTP is taken on loopback only",
        )
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _where(url: str) -> str:
    """Host and path: a query may name a platform's exact state, which is nobody's business in a log."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}{parts.path}"[:160]
    except ValueError:
        return "the service"


def _wait_s(retry_after: str, attempt: int) -> float:
    """What the service asks for, else twice as long each time; never more than ``MAX_WAIT_S``."""
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6:
        return min(float(retry_after), MAX_WAIT_S)
    spread = 1 + random.random()  # noqa: S311  (spreads clients that were refused together)
    doubled: float = FIRST_WAIT_S * 2**attempt
    return min(doubled * spread, MAX_WAIT_S)

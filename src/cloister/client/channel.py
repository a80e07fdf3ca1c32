"""One verified channel to one service: evidence fetched and checked, TLS pinned, ready to carry capsules.

1. The client draws a nonce and fetches evidence over TLS that is not yet trusted, keeping the certificate
   that this connection presented.
2. The evidence is verified and appraised (``cloister.attest.service``): it answers this nonce.
3. The certificate's key is the TLS key in the evidence; else somebody sits between.
4. From here on only that certificate is accepted, and content is sealed to the OHTTP key in the evidence.

The connection that brought the evidence is the first to carry capsules: the certificate that was checked is
its own. So a first answer takes three round trips (TLS, evidence, request), a later one takes one.

A plain ``http://`` address skips 3 and the pin: there the sealing alone protects.
"""

from __future__ import annotations

import base64
import os
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.to_thread
import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import MAX_BUNDLE_BYTES, VerifiedService, verify_bundle
from cloister.client.deadline import Deadline
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import BindingMismatch, ConfigError, MalformedInput, TransportError
from cloister.ohttp.capsule import KeyConfig

EVIDENCE_PATH = "/.well-known/cloister/evidence"
NONCE_BYTES = 32
MAX_CONNECTIONS = 1024
"""To one service. All are kept for a while after their request: a new one costs a handshake."""
LIMITS = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe, and how long to wait for each network operation."""

    reference_values: ReferenceValues
    roots: Sequence[x509.Certificate] | None
    timeout_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """A service that proved itself, and how to reach that service and no other."""

    url: str
    service: VerifiedService
    key_config: KeyConfig
    tls: ssl.SSLContext | bool
    """Accepts the attested TLS key only; True for a plain address, where nothing is to be pinned."""
    verified_at_s: float
    """Monotonic clock."""

    def connect_async(self, timeout_s: float) -> AsyncChannel:
        """New connections for an event loop."""
        http = httpx.AsyncClient(base_url=self.url, verify=self.tls, **_options(timeout_s))
        return AsyncChannel(self, http)


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """A service that proved itself, and the connections to it."""

    verified: Verified
    http: httpx.Client

    @classmethod
    def open(cls, url: str, trust: Trust) -> Channel:
        """Verify the service at ``url``, and keep the connection. Sends nothing but a nonce.

        Raises:
            VerificationError: not genuine, or not about the key that it talks with.
            PolicyDenied: genuine, but not acceptable under the reference values.
            MalformedInput: what came is not evidence.
            TransportError: nothing came.
        """
        nonce, context = os.urandom(NONCE_BYTES), _unverified()
        http = httpx.Client(base_url=url, verify=context, **_options(trust.timeout_s))
        try:
            with (
                reaching(url),
                Deadline(trust.timeout_s) as deadline,
                http.stream(
                    "GET", EVIDENCE_PATH, params=_query(nonce), extensions={"trace": deadline.trace}
                ) as response,
            ):
                taker = _BundleTaker(url, response)
                for part in response.iter_raw():
                    taker.take(part)
            return cls(_judge(url, taker, nonce, trust, context), http)
        except BaseException:
            http.close()
            raise

    def close(self) -> None:
        """Close its connections."""
        self.http.close()


@dataclass(frozen=True, slots=True, eq=False)
class AsyncChannel:
    """As ``Channel``, for an event loop."""

    verified: Verified
    http: httpx.AsyncClient

    @classmethod
    async def open(cls, url: str, trust: Trust) -> AsyncChannel:
        """As ``Channel.open``; the evidence is judged in a thread."""
        nonce, context = os.urandom(NONCE_BYTES), _unverified()
        http = httpx.AsyncClient(base_url=url, verify=context, **_options(trust.timeout_s))
        try:
            with reaching(url), anyio.fail_after(trust.timeout_s):
                async with http.stream("GET", EVIDENCE_PATH, params=_query(nonce)) as response:
                    taker = _BundleTaker(url, response)
                    async for part in response.aiter_raw():
                        taker.take(part)
            return cls(await anyio.to_thread.run_sync(_judge, url, taker, nonce, trust, context), http)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await http.aclose()
            raise

    async def close(self) -> None:
        """Close its connections."""
        await self.http.aclose()


def check_url(url: str) -> str:
    """The base address of a service, without a trailing slash.

    Raises:
        ConfigError: not an http or https address, or one that carries a query or credentials.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"not an address: {error}", hint="give one such as https://host:8443") from error
    if parsed.scheme not in ("https", "http") or not parsed.host:
        raise ConfigError(
            f"not an http or https address: {parsed.scheme}://{parsed.host}",
            hint="give one such as https://host:8443",
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ConfigError("address of a service: no credentials, query or fragment")
    return str(parsed).rstrip("/")


def check_age(max_age_s: float) -> float:
    """How long a verification may be relied on: 0 for one request, infinite for ever.

    Raises:
        ConfigError: no such time. Nothing would ever be older than NaN.
    """
    if not max_age_s >= 0:
        raise ConfigError(f"the age of a verification is 0 seconds or more, found {max_age_s}")
    return max_age_s


def verify_service(
    url: str,
    *,
    reference_values: ReferenceValues,
    roots: Sequence[x509.Certificate] | None,
    timeout_s: float,
) -> Verified:
    """Verify the service at ``url`` once, without keeping a connection; errors as ``Channel.open``."""
    channel = Channel.open(url, Trust(reference_values, roots, timeout_s))
    channel.close()
    return channel.verified


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns httpx's errors into one-line TransportErrors."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        raise TransportError(
            f"no answer from {url} in time", hint="raise timeout_s, or look at the server's load"
        ) from error
    except httpx.ConnectError as error:
        raise TransportError(
            f"cannot connect to {url}: {error}", hint="is the server running, and the address right?"
        ) from error
    except httpx.HTTPError as error:
        raise TransportError(f"connection to {url} failed: {type(error).__name__}") from error


class _BundleTaker:
    """Takes an evidence bundle in, and the certificate of the connection that it comes over."""

    def __init__(self, url: str, response: httpx.Response) -> None:
        self.certificate = _peer_certificate(response) if url.startswith("https:") else None
        """DER; None without TLS."""
        self.bundle = bytearray()
        if response.status_code != httpx.codes.OK:
            raise TransportError(
                f"{url} gives no evidence: HTTP status {response.status_code}",
                hint="is it a Cloister server in protected mode?",
            )
        if "content-encoding" in response.headers:
            raise MalformedInput("evidence bundle came compressed, which was not asked for")

    def take(self, part: bytes) -> None:
        """More of it."""
        self.bundle += part
        if len(self.bundle) > MAX_BUNDLE_BYTES:
            raise MalformedInput(f"evidence bundle is over {MAX_BUNDLE_BYTES} bytes")


def _judge(url: str, taker: _BundleTaker, nonce: bytes, trust: Trust, context: ssl.SSLContext) -> Verified:
    """Steps 2 to 4; ``context`` accepts only the attested key afterwards."""
    service = verify_bundle(
        bytes(taker.bundle),
        nonce=nonce,
        reference_values=trust.reference_values,
        now=datetime.now(UTC),
        roots=trust.roots,
    )
    key_config = KeyConfig.parse(service.identity.ohttp_key_config)
    key_config.pick_suite()
    if taker.certificate is None:
        return Verified(url, service, key_config, True, time.monotonic())
    _check_tls_key(taker.certificate, service.identity.tls_spki)
    _pin(context, taker.certificate)
    return Verified(url, service, key_config, context, time.monotonic())


def _options(timeout_s: float) -> dict[str, Any]:
    """Of every connection: nothing is followed, nothing of ~/.netrc added, nothing asked for compressed."""
    return {
        "timeout": timeout_s,
        "limits": LIMITS,
        "follow_redirects": False,
        "auth": _as_it_is,
        "headers": {"accept-encoding": "identity"},
    }


def _as_it_is(request: httpx.Request) -> httpx.Request:
    return request


def _query(nonce: bytes) -> dict[str, str]:
    return {"nonce": base64.urlsafe_b64encode(nonce).rstrip(b"=").decode("ascii")}


def _unverified() -> ssl.SSLContext:
    """For one connection, whose certificate is judged by the evidence that it brings; then see ``_pin``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _peer_certificate(response: httpx.Response) -> bytes:
    stream = response.extensions.get("network_stream")
    session = None if stream is None else stream.get_extra_info("ssl_object")
    certificate = None if session is None else session.getpeercert(True)
    if not certificate:
        raise BindingMismatch("the connection that brought the evidence has no certificate to compare")
    return bytes(certificate)


def _check_tls_key(certificate: bytes, attested_spki: bytes) -> None:
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except UNREADABLE as error:
        raise MalformedInput("the server's TLS certificate cannot be read") from error
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != attested_spki:
        raise BindingMismatch(
            "the server's TLS key is not the one in its evidence",
            hint="somebody may sit between; only a proxy that passes TLS through unchanged can be used",
        )


def _pin(context: ssl.SSLContext, certificate: bytes) -> None:
    """From now on accept a chain that ends in exactly this certificate.

    Its name proves nothing and is not read. The one connection made before had this certificate too.
    """
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=certificate)
    except ssl.SSLError as error:
        raise MalformedInput("the server's TLS certificate cannot be pinned") from error
    context.verify_mode = ssl.CERT_REQUIRED

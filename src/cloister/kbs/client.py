"""The broker's clients: a TEE that asks for keys, and the owner who keeps them."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from cloister.attest.binding import report_data_for
from cloister.attest.model import Attester
from cloister.crypto.jwe import TeePrivateKey, TeePublicKey
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput, TransportError
from cloister.kbs import protocol

_MAX_DETAIL_CHARACTERS = 600
_HASHES = list(protocol.SUPPORTED_HASH_ALGORITHMS)


class _Connection:
    """HTTPS to one broker; every failure becomes one of our errors."""

    def __init__(self, url: str, *, ca: Path | None, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        if not self._url.startswith("https://"):
            raise ConfigError(f"the broker's URL must begin with https://, found {self._url[:60]!r}")
        try:
            context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot read the broker's certificate {ca}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._http = httpx.Client(base_url=self._url, verify=context, timeout=timeout_s, trust_env=False)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; raises TransportError when there is no answer to it."""
        try:
            return self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise TransportError(
                f"key broker {self._url} cannot be reached: {_cause(error)}",
                hint="is it running, and is its certificate (tls.pem) the one that was given?",
            ) from error

    def forget_cookies(self) -> None:
        self._http.cookies.clear()

    def close(self) -> None:
        self._http.close()


class BrokerClient:
    """Asks a key broker for resources, proving with evidence where it runs.

    It attests when it has no session, and once more when the broker no longer knows its session. The key that
    resources are encrypted to is made for each attestation, and never leaves this object.

    Args:
        url: ``https://host:port``.
        attester: source of evidence.
        ca: PEM file with the broker's certificate; None trusts the system's authorities.
    Raises:
        ConfigError: not an HTTPS URL, or no certificate in ``ca``.
    """

    def __init__(
        self, url: str, *, attester: Attester, ca: Path | None = None, timeout_s: float = 30.0
    ) -> None:
        self._connection = _Connection(url, ca=ca, timeout_s=timeout_s)
        self._attester = attester
        self._key: TeePrivateKey | None = None
        self._lock = threading.Lock()

    def get_resource(self, uri: str) -> bytes:
        """The secret bytes of ``kbs:///repository/type/tag``.

        Raises:
            KeyUnavailable: the broker refuses; the message carries its reason.
            TransportError: it cannot be reached, or what it says breaks the protocol.
            MalformedInput: not such a URI.
        """
        path = protocol.ResourcePath.from_uri(uri)
        with self._lock:
            fresh = self._key is None
            if fresh:
                self._attest()
            response = self._connection.request("GET", f"/kbs/v0/resource/{path}")
            if response.status_code == 401 and not fresh:
                self._attest()  # The session may just have expired; a fresh one tells.
                response = self._connection.request("GET", f"/kbs/v0/resource/{path}")
            if response.status_code != 200:
                raise KeyUnavailable(f"key broker did not release kbs:///{path}: {_detail(response)}")
            return self._opened(response)

    def close(self) -> None:
        """Forget the session and close the connection."""
        self._key = None
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attest(self) -> None:
        self._key = None
        self._connection.forget_cookies()
        tee = self._attester.scheme
        request = protocol.Request(
            version=protocol.VERSION, tee=tee, extra_params={"supported-hash-algorithms": _HASHES}
        )
        response = self._connection.request("POST", "/kbs/v0/auth", **_json(request))
        if response.status_code != 200:
            raise KeyUnavailable(f"key broker refused to begin attestation: {_detail(response)}")
        try:
            challenge = protocol.parse(response.content, protocol.Challenge)
            protocol.check_challenge(challenge)
        except MalformedInput as error:
            raise TransportError(f"key broker sent no usable challenge: {error.message}") from error
        key = TeePrivateKey.generate()
        public = TeePublicKey.from_jwk(key.public_jwk)
        runtime = protocol.runtime_data(challenge.nonce, public)
        evidence = self._attester.get_evidence(report_data_for(runtime))
        composite = protocol.TeeEvidence(primary_evidence=protocol.primary_evidence(tee, evidence.raw))
        attestation = protocol.Attestation(
            runtime_data=protocol.RuntimeData(nonce=challenge.nonce, tee_pubkey=dict(public.jwk)),
            tee_evidence=msgspec.to_builtins(composite),
        )
        response = self._connection.request("POST", "/kbs/v0/attest", **_json(attestation))
        if response.status_code != 200:
            raise KeyUnavailable(f"key broker refused the attestation: {_detail(response)}")
        self._key = key

    def _opened(self, response: httpx.Response) -> bytes:
        if self._key is None:
            raise TransportError("key broker answered without an attestation")
        try:
            answer = protocol.parse(response.content, protocol.ResourceAnswer)
            return self._key.decrypt(msgspec.to_builtins(answer))
        except MalformedInput as error:
            raise TransportError(f"key broker sent no usable resource: {error.message}") from error


class BrokerAdmin:
    """Stores and deletes resources at a key broker, with its admin token."""

    def __init__(self, url: str, *, token: str, ca: Path | None = None, timeout_s: float = 30.0) -> None:
        self._connection = _Connection(url, ca=ca, timeout_s=timeout_s)
        self._headers = {"Authorization": f"Bearer {token.strip()}"}

    def put_resource(self, uri: str, data: bytes) -> None:
        """Store ``data`` as the newest version of ``kbs:///repository/type/tag``.

        Raises:
            KeyUnavailable: the broker refuses; the message carries its reason.
            TransportError: it cannot be reached.
        """
        self.put_version(uri, data)

    def put_version(self, uri: str, data: bytes) -> int:
        """As ``put_resource``; returns the number of the new version."""
        response = self._call("POST", uri, content=data)
        try:
            return int(response.json()["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise TransportError("key broker did not say which version it stored") from error

    def delete_resource(self, uri: str) -> None:
        """Delete every version, or the one that the URI names."""
        self._call("DELETE", uri)

    def list_resources(self) -> list[dict[str, Any]]:
        """Every stored version: ``uri``, ``version``, ``bytes``, ``created``."""
        response = self._connection.request("GET", "/kbs/v0/resource", headers=self._headers)
        if response.status_code != 200:
            raise KeyUnavailable(f"key broker refused: {_detail(response)}")
        try:
            return msgspec.json.decode(response.content, type=list[dict[str, Any]])
        except msgspec.DecodeError as error:
            raise TransportError("key broker sent no list of resources") from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, uri: str, **options: Any) -> httpx.Response:
        path = protocol.ResourcePath.from_uri(uri)
        response = self._connection.request(
            method, f"/kbs/v0/resource/{path}", headers=self._headers, **options
        )
        if response.status_code != 200:
            raise KeyUnavailable(f"key broker refused kbs:///{path}: {_detail(response)}")
        return response


def _json(message: msgspec.Struct) -> dict[str, Any]:
    return {"content": protocol.render(message), "headers": {"Content-Type": "application/json"}}


def _detail(response: httpx.Response) -> str:
    """The broker's reason in one printable line."""
    try:
        detail = protocol.parse(response.content, protocol.ErrorInformation).detail
    except MalformedInput:
        return f"HTTP status {response.status_code}"
    printable = "".join(character if character.isprintable() else " " for character in detail)
    return " ".join(printable.split())[:_MAX_DETAIL_CHARACTERS] or f"HTTP status {response.status_code}"


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

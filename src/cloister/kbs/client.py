"""The broker's clients: a TEE that asks for keys, and the owner who keeps them."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from cloister.attest.binding import report_data_for
from cloister.attest.model import Attester
from cloister.crypto.jwe import TeePrivateKey, TeePublicKey, b64u_encode
from cloister.crypto.locked import LockedSecret
from cloister.errors import CloisterError, ConfigError, KeyUnavailable, MalformedInput, TransportError
from cloister.kbs import protocol
from cloister.kbs.cache.identity import file_in_memory
from cloister.kbs.evidence import tee_of_scheme, write_evidence

_MAX_DETAIL_CHARACTERS = 600
_CONNECT_S = 5.0
_HINT = "is it running, and is its certificate (tls.pem) the one that was given?"
_PEM = "-----BEGIN "
_HASHES = list(protocol.SUPPORTED_HASH_ALGORITHMS)


class AllUnreachable(TransportError):
    """Not one of the brokers takes a connection."""


class _Connection:
    """HTTPS to one broker of several; every failure becomes one of our errors."""

    def __init__(
        self, url: str | Sequence[str], *, ca: Path | None, timeout_s: float, certificate: str = ""
    ) -> None:
        self._urls = broker_urls(url)
        try:
            context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot read the broker's certificate {ca}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if certificate:
            _show(context, certificate)
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S))
        self._http = httpx.Client(verify=context, timeout=timeout, trust_env=False)

    @property
    def brokers(self) -> int:
        """How many there are."""
        return len(self._urls)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; raises TransportError when there is no answer to it.

        A broker that takes no connection has not seen the request, so the next one is asked.
        """
        for tried in range(1, self.brokers + 1):
            url = self._urls[0]
            try:
                return self._http.request(method, url + path, **options)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if tried == self.brokers:
                    names = ", ".join(self._urls) if self.brokers > 1 else url
                    raise AllUnreachable(
                        f"key broker {names} cannot be reached: {_cause(error)}", hint=_HINT
                    ) from error
                self.switch()
            except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
                message = f"key broker {url} cannot be reached: {_cause(error)}"
                raise TransportError(message, hint=_HINT) from error
        raise AllUnreachable("there is no key broker to ask")

    def switch(self) -> None:
        """Ask the next broker from now on; the session goes along, for brokers that share theirs."""
        self._urls = (*self._urls[1:], self._urls[0])
        session_id = next((c.value for c in self._http.cookies.jar if c.name == protocol.COOKIE), None)
        self._http.cookies.clear()
        if session_id is not None:
            self._http.cookies.set(protocol.COOKIE, session_id)

    def forget_cookies(self) -> None:
        self._http.cookies.clear()

    def close(self) -> None:
        self._http.close()


class BrokerClient:
    """Asks a key broker for resources, proving with evidence where it runs.

    It attests when it has no session, and once more when the broker no longer knows its session. The key that
    resources are encrypted to is made for each attestation, and never leaves this object.

    Of several brokers on one database it asks one until that one fails, then the next; a request that was
    under way is made again there. Only when none of them answers does it fail.

    Args:
        url: ``https://host:port``; several, separated by commas or blanks, or as a sequence.
        attester: source of evidence.
        ca: PEM file with the broker's certificate; None trusts the system's authorities.
        init_data: the init data that this TEE was started with, for brokers whose policy looks at it.
    Raises:
        ConfigError: not an HTTPS URL, or no certificate in ``ca``.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        attester: Attester,
        ca: Path | None = None,
        timeout_s: float = 30.0,
        init_data: protocol.InitData | None = None,
    ) -> None:
        self._connection = _Connection(url, ca=ca, timeout_s=timeout_s)
        self._attester = attester
        self._init_data = init_data
        self._key: TeePrivateKey | None = None
        self._lock = threading.Lock()

    def get_resource(self, uri: str) -> bytes:
        """The secret bytes of ``kbs:///repository/type/tag``.

        Raises:
            KeyUnavailable: the broker refuses; the message carries its reason.
            TransportError: it cannot be reached, or what it says breaks the protocol.
            MalformedInput: not such a URI.
        """
        with self._lock:
            key, message = self._released(uri)
            with _named_answer():
                return key.decrypt(message)

    def get_locked(self, uri: str, *, required: bool = True) -> LockedSecret:
        """As ``get_resource``, decrypted straight into locked memory.

        Args:
            required: whether memory that cannot be locked is an error.
        Raises:
            ConfigError: memory cannot be locked.
        """
        with self._lock:
            key, message = self._released(uri)
        made: list[LockedSecret] = []
        with contextlib.ExitStack() as stack:

            def room(length: int) -> memoryview:
                made.append(LockedSecret(length, required=required))
                return stack.enter_context(made[0].fill())

            with _named_answer():
                key.decrypt_into(message, room)
        return made[0]

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

    def _attest(self) -> TeePrivateKey:
        self._key = None
        self._connection.forget_cookies()
        tee = tee_of_scheme(self._attester.scheme)
        request = protocol.Request(
            version=protocol.VERSION, tee=tee, extra_params={"supported-hash-algorithms": _HASHES}
        )
        response = self._connection.request("POST", "/kbs/v0/auth", **_json(request))
        if response.status_code != 200:
            raise _failure("key broker refused to begin attestation", response)
        try:
            challenge = protocol.parse(response.content, protocol.Challenge)
            algorithm = protocol.check_challenge(challenge)
        except MalformedInput as error:
            raise TransportError(f"key broker sent no usable challenge: {error.message}") from error
        key = TeePrivateKey.generate()
        public = TeePublicKey.from_jwk(key.public_jwk)
        runtime = protocol.runtime_data(challenge.nonce, public)
        evidence = self._attester.get_evidence(report_data_for(runtime, algorithm))
        primary = write_evidence(self._attester.scheme, evidence.raw)
        composite = protocol.TeeEvidence(primary_evidence=primary)
        attestation = protocol.Attestation(
            runtime_data=protocol.RuntimeData(nonce=challenge.nonce, tee_pubkey=dict(public.jwk)),
            tee_evidence=msgspec.to_builtins(composite),
            init_data=self._init_data,
        )
        response = self._connection.request("POST", "/kbs/v0/attest", **_json(attestation))
        if response.status_code != 200:
            raise _failure("key broker refused the attestation", response)
        self._key = key
        return key

    def _released(self, uri: str) -> tuple[TeePrivateKey, dict[str, Any]]:
        """The broker's answer for a resource, and the key that opens it."""
        path = protocol.ResourcePath.from_uri(uri)
        for _ in range(1, self._connection.brokers):
            try:
                return self._asked(path)
            except AllUnreachable:
                raise
            except TransportError:
                self._connection.switch()
        return self._asked(path)

    def _asked(self, path: protocol.ResourcePath) -> tuple[TeePrivateKey, dict[str, Any]]:
        key, fresh = (self._key, False) if self._key else (self._attest(), True)
        response = self._connection.request("GET", f"/kbs/v0/resource/{path}")
        if response.status_code == 401 and not fresh:
            key = self._attest()  # The session may just have expired; a fresh one tells.
            response = self._connection.request("GET", f"/kbs/v0/resource/{path}")
        if response.status_code != 200:
            raise _failure(f"key broker did not release kbs:///{path}", response)
        with _named_answer():
            return key, msgspec.to_builtins(protocol.parse(response.content, protocol.ResourceAnswer))


class BrokerAdmin:
    """Stores and deletes resources at a key broker, as one of its administrators.

    Of several brokers, as for ``BrokerClient``, it asks the first that takes a connection.

    Args:
        token: an admin token, or the PEM text of a client certificate and its private key.
    """

    def __init__(
        self, url: str | Sequence[str], *, token: str, ca: Path | None = None, timeout_s: float = 30.0
    ) -> None:
        shown = token.strip()
        pem = shown if _PEM in shown else ""
        self._connection = _Connection(url, ca=ca, timeout_s=timeout_s, certificate=pem)
        self._headers = {} if pem else {"Authorization": f"Bearer {shown}"}

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

    def show_resource(self, uri: str) -> dict[str, Any]:
        """Versions of a resource and their standing; never its content."""
        path = protocol.ResourcePath.from_uri(uri)
        return self._object("GET", f"/cloister/v0/resource/{path.path}")

    def revoke(self, uri: str, reason: str) -> None:
        """Have a resource, or the version that the URI names, released to nobody any more."""
        self._object("POST", "/cloister/v0/revoke", json={"uri": uri, "reason": reason})

    def restore(self, uri: str, reason: str = "") -> None:
        """Take a revocation back."""
        self._object("POST", "/cloister/v0/restore", json={"uri": uri, "reason": reason})

    def set_minimum(self, uri: str, version: int) -> int:
        """Have versions below ``version`` released to nobody; returns the minimum before."""
        answer = self._object("POST", "/cloister/v0/minimum", json={"uri": uri, "version": version})
        return int(answer.get("before", 0))

    def rotate_kek(self, *, renew: bool = True, retire: bool = True) -> dict[str, Any]:
        """Wrap every data key under the newest KEK; ``kek_id``, ``rewrapped``, ``retired``."""
        return self._object("POST", "/cloister/v0/rotate-kek", json={"renew": renew, "retire": retire})

    def set_policy(self, text: str) -> None:
        """Set the policy that decides releases, in Cedar or Rego."""
        policy = b64u_encode(text.encode("utf-8"))
        self._admin("POST", "/kbs/v0/resource-policy", json={"policy": policy})

    def get_policy(self) -> str:
        """The policy that was set."""
        return self._admin("GET", "/kbs/v0/resource-policy").text

    def set_reference_values(self, text: str) -> None:
        """Set the reference values, as TOML."""
        self._admin("POST", "/cloister/v0/reference-values", content=text.encode("utf-8"))

    def get_reference_values(self) -> str:
        """The reference values that were set, as TOML."""
        return self._admin("GET", "/cloister/v0/reference-values").text

    def audit_entries(self, after: int = 0) -> list[dict[str, Any]]:
        """Up to 1,000 entries of the audit log after a sequence number."""
        response = self._admin("GET", f"/cloister/v0/audit?after={after}")
        try:
            return msgspec.json.decode(response.content, type=list[dict[str, Any]])
        except msgspec.DecodeError as error:
            raise TransportError("key broker sent no audit entries") from error

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

    def _admin(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = self._connection.request(method, path, headers=self._headers, **options)
        if response.status_code != 200:
            raise KeyUnavailable(f"key broker refused: {_detail(response)}")
        return response

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._admin(method, path, **options)
        try:
            return msgspec.json.decode(response.content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise TransportError("key broker sent no JSON object") from error

    def _call(self, method: str, uri: str, **options: Any) -> httpx.Response:
        path = protocol.ResourcePath.from_uri(uri)
        response = self._connection.request(
            method, f"/kbs/v0/resource/{path}", headers=self._headers, **options
        )
        if response.status_code != 200:
            raise KeyUnavailable(f"key broker refused kbs:///{path}: {_detail(response)}")
        return response


def _show(context: ssl.SSLContext, certificate: str) -> None:
    try:
        with file_in_memory(certificate.encode("utf-8")) as path:
            context.load_cert_chain(path, password=lambda: b"")  # never ask at a terminal
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("not a PEM of a client certificate and its private key") from error


@contextlib.contextmanager
def _named_answer() -> Iterator[None]:
    try:
        yield
    except MalformedInput as error:
        raise TransportError(f"key broker sent no usable resource: {error.message}") from error


def broker_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """The brokers' URLs, from a sequence or from text that separates them by commas or blanks.

    Raises:
        ConfigError: none, or one that is not HTTPS.
    """
    listed = url.replace(",", " ").split() if isinstance(url, str) else list(url)
    urls = tuple(dict.fromkeys(one.strip().rstrip("/") for one in listed))
    wrong = next((one for one in urls if not one.startswith("https://")), None)
    if wrong is not None or not urls:
        raise ConfigError(f"the broker's URL must begin with https://, found {(wrong or '')[:60]!r}")
    return urls


def _json(message: msgspec.Struct) -> dict[str, Any]:
    return {"content": protocol.render(message), "headers": {"Content-Type": "application/json"}}


def _failure(what: str, response: httpx.Response) -> CloisterError:
    """KeyUnavailable for a refusal; TransportError where the broker could not answer (503, 429, ...)."""
    refused = response.status_code < 500 and response.status_code != httpx.codes.TOO_MANY_REQUESTS
    kind = KeyUnavailable if refused else TransportError
    return kind(f"{what}: {_detail(response)}")


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

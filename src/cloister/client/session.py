"""The client: verify the service, then predict.

::

    with Client("https://host:8443", reference_values=ReferenceValues.from_toml(path)) as client:
        print(client.predict("resnet", Path("cat.jpg")).json())

In an event loop ``AsyncClient`` does the same. ``transport`` and ``async_transport`` put any SDK that is
built on httpx on top of a verified service::

    sdk = openai.OpenAI(
        base_url="https://host:8443/v1", api_key="...",
        http_client=httpx.Client(transport=cloister.transport("https://host:8443", reference_values=values)),
    )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Required, Self, TypedDict, Unpack

import httpx
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import VerifiedService
from cloister.client.aio import AsyncOhttpTransport
from cloister.client.answer import Answer, raise_for_status
from cloister.client.requests import inference, metadata_path, own_headers, prediction
from cloister.client.sealing import REPEATABLE
from cloister.client.tensors import Array, decode_tensors
from cloister.client.transport import OhttpTransport
from cloister.errors import MalformedInput

if TYPE_CHECKING:
    from cloister.client.for_httpx2 import AsyncHttpx2Transport, Httpx2Transport


class Client:
    """Speaks to one service, which must prove itself first.

    Nothing but a nonce leaves before the service's evidence is verified and acceptable; after that every
    request is sealed to the key in the evidence. See ``OhttpTransport`` for when it verifies again.
    """

    def __init__(
        self,
        url: str,
        *,
        reference_values: ReferenceValues,
        roots: Sequence[x509.Certificate] | None = None,
        max_age_s: float = 300.0,
        timeout_s: float = 60.0,
        padding: bool = False,
        token: str = "",
        model_digest: str | Sequence[str] = (),
        model_signer: str | Sequence[str] = (),
        policy_digest: str | Sequence[str] = (),
    ) -> None:
        """Set up; no connection is made yet.

        Args:
            url: base address, for example ``https://host:8443``.
            reference_values: which services are acceptable.
            roots: trusted attestation roots; None means the vendors' only. A simulated platform's root
                must be given here.
            max_age_s: how long one verification is relied on.
            timeout_s: for each network operation.
            padding: fill requests up to size classes, so that their length says less of what is in them.
            token: an API key or a JSON Web Token, where the service asks who calls; it travels sealed.
            model_digest: SHA-256 that the container of every loaded model has to have; with ``NAME=`` or
                ``NAME/VERSION=`` before it, that of this model. One of several, if more are given.
            model_signer: the same for who signed it, as ``cloister verify`` shows it.
            policy_digest: SHA-384 that the access policy in force has to have.
        """
        self._transport = OhttpTransport(
            url,
            reference_values=reference_values.demanding(model_digest, model_signer, policy_digest),
            roots=roots,
            max_age_s=max_age_s,
            timeout_s=timeout_s,
            padding=padding,
        )
        self._http = httpx.Client(
            transport=self._transport,
            base_url=self._transport.url,
            timeout=timeout_s,
            headers=own_headers(token),
        )

    @property
    def url(self) -> str:
        """The service's base address."""
        return self._transport.url

    def verify(self) -> VerifiedService:
        """Verify the service now, and return what it proved.

        Raises:
            VerificationError: not genuine, or about other keys.
            PolicyDenied: genuine, but not acceptable.
            TransportError: not reached.
        """
        return self._transport.verify()

    def predict(
        self, model: str, data: Any, *, version: str | None = None, content_type: str | None = None
    ) -> Answer:
        """Ask a model.

        Args:
            data: bytes, text, a ``Path``, JSON values or a NumPy array; see ``cloister.client.payload``.
            version: None means the model's default version.
            content_type: overrides the one that follows from the kind of ``data``.
        Raises:
            ModelNotFound, RequestTooLarge, Overloaded, ModelFailed, WorkerLost, ServingError: no prediction.
            VerificationError, PolicyDenied: the service did not prove itself, or the answer is forged.
            TransportError: not reached.
        """
        path, content, headers = prediction(model, data, version, content_type)
        return self._send("POST", path, content=content, headers=headers)

    def infer(
        self, model: str, inputs: Mapping[str, Array], *, version: str | None = None
    ) -> dict[str, Array]:
        """Give a model arrays by name, and get arrays back: the Open Inference Protocol, binary both ways.

        Raises:
            MalformedInput: an array that is no tensor, or an answer that is none of the protocol.
            CloisterError: as ``predict``.
        """
        path, content, headers = inference(model, inputs, version)
        return decode_tensors(self._send("POST", path, content=content, headers=headers))

    def metadata(self, model: str, *, version: str | None = None) -> dict[str, Any]:
        """What a model says of itself (``/v2/models/...``): versions, and the tensors that it declares."""
        return _object(self._send("GET", metadata_path(model, version)))

    def ping(self) -> Answer:
        """The service's health, asked through the sealed channel."""
        return self._send("GET", "/ping")

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(
        self, method: str, path: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        extensions = {REPEATABLE: True}  # the service itself runs a prediction again whose worker died
        request = self._http.build_request(
            method, path, content=content, headers=headers, extensions=extensions
        )
        response = self._http.send(request, stream=True)
        raw = b"".join(list(response.iter_raw()))
        return raise_for_status(Answer(response.status_code, tuple(response.headers.multi_items()), raw))


class TransportOptions(TypedDict, total=False):
    """The arguments of ``transport`` by name."""

    reference_values: Required[ReferenceValues]
    roots: Sequence[x509.Certificate] | None
    max_age_s: float
    timeout_s: float
    padding: bool


def transport(
    url: str,
    *,
    reference_values: ReferenceValues,
    roots: Sequence[x509.Certificate] | None = None,
    max_age_s: float = 300.0,
    timeout_s: float = 60.0,
    padding: bool = False,
) -> OhttpTransport:
    """A transport for ``httpx.Client``: verified, sealed, streamed. Arguments as ``Client``."""
    return OhttpTransport(
        url,
        reference_values=reference_values,
        roots=roots,
        max_age_s=max_age_s,
        timeout_s=timeout_s,
        streaming=True,
        padding=padding,
    )


def async_transport(
    url: str,
    *,
    reference_values: ReferenceValues,
    roots: Sequence[x509.Certificate] | None = None,
    max_age_s: float = 300.0,
    timeout_s: float = 60.0,
    padding: bool = False,
) -> AsyncOhttpTransport:
    """A transport for ``httpx.AsyncClient``: verified, sealed, streamed. Arguments as ``Client``."""
    return AsyncOhttpTransport(
        url,
        reference_values=reference_values,
        roots=roots,
        max_age_s=max_age_s,
        timeout_s=timeout_s,
        streaming=True,
        padding=padding,
    )


def httpx2_transport(url: str, **options: Unpack[TransportOptions]) -> Httpx2Transport:
    """As ``transport``, for ``httpx2.Client``; the same arguments.

    Raises:
        MissingDependencyError: httpx2 is not installed.
    """
    from cloister.client.for_httpx2 import Httpx2Transport

    return Httpx2Transport(transport(url, **options))


def async_httpx2_transport(url: str, **options: Unpack[TransportOptions]) -> AsyncHttpx2Transport:
    """As ``async_transport``, for ``httpx2.AsyncClient``; the same arguments.

    Raises:
        MissingDependencyError: httpx2 is not installed.
    """
    from cloister.client.for_httpx2 import AsyncHttpx2Transport

    return AsyncHttpx2Transport(async_transport(url, **options))


class AsyncClient:
    """``Client`` for an event loop: the same arguments, the same errors, awaited."""

    def __init__(
        self,
        url: str,
        *,
        reference_values: ReferenceValues,
        roots: Sequence[x509.Certificate] | None = None,
        max_age_s: float = 300.0,
        timeout_s: float = 60.0,
        padding: bool = False,
        token: str = "",
        model_digest: str | Sequence[str] = (),
        model_signer: str | Sequence[str] = (),
        policy_digest: str | Sequence[str] = (),
    ) -> None:
        """Set up; no connection is made yet. See ``Client``."""
        self._transport = AsyncOhttpTransport(
            url,
            reference_values=reference_values.demanding(model_digest, model_signer, policy_digest),
            roots=roots,
            max_age_s=max_age_s,
            timeout_s=timeout_s,
            padding=padding,
        )
        self._http = httpx.AsyncClient(
            transport=self._transport,
            base_url=self._transport.url,
            timeout=timeout_s,
            headers=own_headers(token),
        )

    @property
    def url(self) -> str:
        """The service's base address."""
        return self._transport.url

    async def verify(self) -> VerifiedService:
        """Verify the service now, and return what it proved; errors as ``Client.verify``."""
        return await self._transport.verify()

    async def predict(
        self, model: str, data: Any, *, version: str | None = None, content_type: str | None = None
    ) -> Answer:
        """Ask a model; arguments and errors as ``Client.predict``."""
        path, content, headers = prediction(model, data, version, content_type)
        return await self._send("POST", path, content=content, headers=headers)

    async def infer(
        self, model: str, inputs: Mapping[str, Array], *, version: str | None = None
    ) -> dict[str, Array]:
        """Arrays in, arrays out; arguments and errors as ``Client.infer``."""
        path, content, headers = inference(model, inputs, version)
        return decode_tensors(await self._send("POST", path, content=content, headers=headers))

    async def metadata(self, model: str, *, version: str | None = None) -> dict[str, Any]:
        """What a model says of itself; as ``Client.metadata``."""
        return _object(await self._send("GET", metadata_path(model, version)))

    async def ping(self) -> Answer:
        """The service's health, asked through the sealed channel."""
        return await self._send("GET", "/ping")

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(
        self, method: str, path: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        extensions = {REPEATABLE: True}  # the service itself runs a prediction again whose worker died
        request = self._http.build_request(
            method, path, content=content, headers=headers, extensions=extensions
        )
        response = await self._http.send(request, stream=True)
        raw = b"".join([part async for part in response.aiter_raw()])
        return raise_for_status(Answer(response.status_code, tuple(response.headers.multi_items()), raw))


def _object(answer: Answer) -> dict[str, Any]:
    found = answer.json()
    if not isinstance(found, dict):
        raise MalformedInput("answer is not a JSON object")
    return found

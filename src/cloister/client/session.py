"""The client: verify the service, then predict.

::

    with Client("https://host:8443", reference_values=ReferenceValues.from_toml(path)) as client:
        print(client.predict("resnet", Path("cat.jpg")).json())
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import VerifiedService
from cloister.client.answer import Answer, raise_for_status
from cloister.client.payload import encode_payload
from cloister.client.transport import OhttpTransport
from cloister.errors import ConfigError


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
    ) -> None:
        """Set up; no connection is made yet.

        Args:
            url: base address, for example ``https://host:8443``.
            reference_values: which services are acceptable.
            roots: trusted attestation roots; None means the vendors' only. A simulated platform's root
                must be given here.
            max_age_s: how long one verification is relied on.
            timeout_s: for each network operation.
        """
        self._transport = OhttpTransport(
            url, reference_values=reference_values, roots=roots, max_age_s=max_age_s, timeout_s=timeout_s
        )
        self._http = httpx.Client(transport=self._transport, base_url=self._transport.url, timeout=timeout_s)

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
        content, kind = encode_payload(data, content_type)
        path = f"/predictions/{_segment(model, 'model')}"
        if version is not None:
            path += f"/{_segment(version, 'version')}"
        return self._send("POST", path, content=content, headers={"content-type": kind})

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
        response = self._http.request(method, path, content=content, headers=headers)
        answer = Answer(response.status_code, tuple(response.headers.multi_items()), response.content)
        return raise_for_status(answer)


def _segment(name: str, what: str) -> str:
    # "." and ".." would be taken as steps of the path.
    if not name or name in (".", ".."):
        raise ConfigError(f"{what}: empty or not a name")
    return quote(name, safe="")

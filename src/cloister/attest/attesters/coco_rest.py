"""Evidence from Confidential Containers' REST service inside the guest.

=================================================== ==================================================
request                                             answer
=================================================== ==================================================
``GET /info``                                       ``{"version", "tee"?, "additional_tees"?, "feature"}``
``GET /aa/evidence?runtime_data=...&encoding=base64`` evidence as JSON; its shape depends on ``tee``
=================================================== ==================================================

``runtime_data`` is base64 in the URL alphabet without padding; the service hands these bytes to the hardware
as they are. ``tee`` is there only if the service has been started with the attestation feature.

What comes back is turned into the vendor's own bytes, in this table:

=============== ============ ==============================================================
tee             scheme       evidence
=============== ============ ==============================================================
``tdx``         tdx          ``{"quote": base64, "cc_eventlog": base64 or null}``
``sgx``         sgx          ``{"quote": base64}``
``snp``         sev-snp      ``{"attestation_report": {...}, "cert_chain": [...] or null}``
others          the same     the JSON is the evidence: ``az-snp-vtpm``, ``az-tdx-vtpm``
=============== ============ ==============================================================

Source: confidential-containers/guest-components, ``api-server-rest`` and ``attestation-agent/attester``.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from cloister.attest.attesters.report_data import check_report_data
from cloister.attest.model import Endorsements, Evidence
from cloister.attest.snp.trustee import parse_trustee_evidence
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput, TransportError

COCO_REST = "http://127.0.0.1:8006"
MAX_ANSWER_BYTES = 1 << 20
TIMEOUT_S = 60.0
"""The service itself gives the attestation agent 50 seconds."""
PROBE_TIMEOUT_S = 1.0

_Parts = tuple[bytes, Endorsements | None]


class CocoAttester:
    """Obtains evidence of this guest from the REST service.

    Args:
        url: base address; plain HTTP, for the service listens on the guest's own loopback only.
        probe_timeout_s: for the first request, which finds out whether the service is there.
    Raises:
        TransportError: no answer.
        ConfigError: the service has no attestation, or a TEE whose evidence is not supported.
    """

    def __init__(self, url: str = COCO_REST, *, probe_timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        try:
            info = _object(self._get("/info", {}, probe_timeout_s), "/info")
        except KeyUnavailable as error:
            raise TransportError(f"{self._url} is not the guest's REST service: {error.message}") from error
        tee = info.get("tee")
        if tee is None:
            raise ConfigError(
                "the guest's REST service does not attest: it names no TEE",
                hint="start it with --features all or attestation",
            )
        if tee not in _TEES:
            raise ConfigError(
                f"the guest's REST service attests for {str(tee)[:40]!r}, supported are {', '.join(_TEES)}"
            )
        self.scheme, self._decode = _TEES[tee]
        self._endorsements: Endorsements | None = None
        self._lock = threading.Lock()

    def get_evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes of ``report_data``.

        Raises:
            TransportError: no answer, or one that breaks the protocol.
            KeyUnavailable: the service could not make evidence.
        """
        encoded = base64.urlsafe_b64encode(check_report_data(report_data)).rstrip(b"=").decode("ascii")
        query = {"runtime_data": encoded, "encoding": "base64"}
        answer = self._get("/aa/evidence", query, TIMEOUT_S)
        try:
            raw, endorsements = self._decode(answer)
        except MalformedInput as error:
            raise TransportError(
                f"the guest's REST service sent no {self.scheme} evidence: {error.message}"
            ) from error
        with self._lock:
            self._endorsements = endorsements
        return Evidence(self.scheme, raw)

    def get_endorsements(self) -> Endorsements | None:
        """SEV-SNP: the certificates that came with the last evidence, if any did; otherwise None."""
        with self._lock:
            return self._endorsements

    def _get(self, path: str, query: Mapping[str, str], timeout_s: float) -> bytes:
        try:
            with (
                httpx.Client(timeout=timeout_s, trust_env=False) as client,
                client.stream("GET", f"{self._url}{path}", params=query) as response,
            ):
                content = _limited(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransportError(
                f"the guest's REST service {self._url} does not answer: {type(error).__name__}"
            ) from error
        if response.status_code != 200:
            # The text is the service's own and says what is wrong with the hardware; it holds no secret.
            reason = " ".join(content[:200].decode("utf-8", "replace").split())
            raise KeyUnavailable(f"the guest's REST service answered {response.status_code}: {reason}")
        return content


def _limited(response: httpx.Response) -> bytes:
    content = b""
    for part in response.iter_bytes():
        content += part
        if len(content) > MAX_ANSWER_BYTES:
            raise TransportError(f"the guest's REST service sent more than {MAX_ANSWER_BYTES} bytes")
    return content


def _object(content: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TransportError(f"the guest's REST service: {what} is not JSON") from error
    if not isinstance(document, dict):
        raise TransportError(f"the guest's REST service: {what} is not a JSON object")
    return document


def _quote(content: bytes) -> _Parts:
    quote = _object(content, "evidence").get("quote")
    if not isinstance(quote, str) or not quote:
        raise MalformedInput("there is no quote in it")
    try:
        return base64.b64decode(quote, validate=True), None
    except (binascii.Error, ValueError) as error:
        raise MalformedInput("quote is not base64") from error


def _snp(content: bytes) -> _Parts:
    return parse_trustee_evidence(_object(content, "evidence"))


def _as_it_is(content: bytes) -> _Parts:
    _object(content, "evidence")
    return content, None


_TEES: dict[str, tuple[str, Callable[[bytes], _Parts]]] = {
    "tdx": ("tdx", _quote),
    "sgx": ("sgx", _quote),
    "snp": ("sev-snp", _snp),
    "az-snp-vtpm": ("az-snp-vtpm", _as_it_is),
    "az-tdx-vtpm": ("az-tdx-vtpm", _as_it_is),
}

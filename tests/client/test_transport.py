"""Any httpx client over the sealing transport."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator

import httpx
import pytest

import cloister
from cloister import AsyncClient, Client
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.client.transport import OhttpTransport
from cloister.errors import ConfigError, MalformedInput, MissingDependencyError
from cloister.ohttp import bhttp
from tests.fakes.sealed_service import SealedService


@pytest.fixture
def http(
    service: SealedService, platform: SimulatedPlatform, reference_values: ReferenceValues
) -> Iterator[httpx.Client]:
    """A plain httpx client whose requests are sealed."""
    transport = OhttpTransport(service.url, reference_values=reference_values, roots=[platform.root])
    with httpx.Client(transport=transport, base_url=service.url) as client:
        yield client


def test_any_request_is_sealed(service: SealedService, http: httpx.Client) -> None:
    """Method, query, headers and streamed content arrive inside the capsule."""
    answer = http.put("/v2/x", params={"a": "b c"}, content=iter([b"one", b"two"]), headers={"X-Own": "yes"})
    assert answer.json()["method"] == "PUT"
    assert answer.json()["path"] == "/v2/x?a=b+c"
    assert base64.b64decode(answer.json()["content"]) == b"onetwo"
    assert service.requests[0].header(b"x-own") == b"yes"


def test_fields_about_the_connection_stay_outside(service: SealedService, http: httpx.Client) -> None:
    """Host becomes the authority; connection and transfer fields are not sealed (RFC 9292, section 3.6)."""
    http.post("/x", content=iter([b"1"]))
    request = service.requests[0]
    assert request.authority.decode() == service.url.removeprefix("https://")
    assert not {b"host", b"connection", b"transfer-encoding"} & {name for name, _ in request.headers}


def test_headers_of_the_answer(service: SealedService, http: httpx.Client) -> None:
    """Repeated headers of the answer come back, those about the connection do not."""
    headers = ((b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"connection", b"close"))
    service.answer = lambda request: bhttp.Response(201, headers, b"made")
    answer = http.get("/x")
    assert (answer.status_code, answer.content) == (201, b"made")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert "connection" not in answer.headers


def test_header_injection_is_refused(service: SealedService, http: httpx.Client) -> None:
    """A line break in a header is refused before anything is sealed."""
    with pytest.raises(MalformedInput):
        http.get("/x", headers={"a": "b\r\nc: d"})
    assert service.requests == []


def test_without_httpx2(monkeypatch: pytest.MonkeyPatch, reference_values: ReferenceValues) -> None:
    """Where httpx2 is not installed, its transports say what to install."""
    monkeypatch.setitem(sys.modules, "httpx2", None)
    monkeypatch.delitem(sys.modules, "cloister.client.for_httpx2", raising=False)
    for make in (cloister.httpx2_transport, cloister.async_httpx2_transport):
        with pytest.raises(MissingDependencyError, match="httpx2") as caught:
            make("https://127.0.0.1:9", reference_values=reference_values)
        assert "cloister[httpx2]" in caught.value.hint


@pytest.mark.parametrize("age_s", [float("nan"), -1.0])
def test_age_of_a_verification(reference_values: ReferenceValues, age_s: float) -> None:
    """An age that nothing is ever older than would never be verified again."""
    for kind in (Client, AsyncClient, cloister.transport, cloister.async_transport):
        with pytest.raises(ConfigError):
            kind("https://127.0.0.1:9", reference_values=reference_values, max_age_s=age_s)

"""Pages of other origins: preflights, several origins, the gateway's answers, and never a credential."""

from __future__ import annotations

import pytest

from cloister.serve.http import paths
from cloister.serve.http.cors import Cors
from cloister.serve.http.ways import Way
from cloister.settings import ServeSettings
from tests.serve.http.front_end import FrontEnd, Wire, front_end, post, run
from tests.serve.http.test_gateway import SEALED, ask, attach

PAGE, OTHER = "https://app.example", "https://evil.example"
ALLOW = "access-control-allow-origin"


def allow(end: FrontEnd, origins: str, **more: str) -> None:
    end.use_cors(Cors(ServeSettings(cors_origin=origins, **more)))


def preflight(path: str, origin: str, *, asked: str = "access-control-request-method: POST\r\n") -> bytes:
    return f"OPTIONS {path} HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\n{asked}\r\n".encode()


async def say(wire: Wire, raw: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer."""
    await wire.send(raw)
    status, headers, _ = await wire.answer()
    assert "access-control-allow-credentials" not in headers
    return status, headers


@pytest.mark.parametrize("path", [paths.GATEWAY, f"{paths.EVIDENCE}?nonce=x", "/predictions/echo"])
def test_preflight(path: str) -> None:
    """A browser that asks first is told what a page may send; if the page's origin is not listed, nothing."""

    async def test() -> None:
        async with front_end() as end:
            allow(end, f"{PAGE}, https://second.example")
            attach(end)
            wire = await end.connect()
            status, headers = await say(wire, preflight(path, PAGE))
            assert (status, headers[ALLOW], headers["vary"]) == (204, PAGE, "origin")
            assert "POST" in headers["access-control-allow-methods"]
            assert "content-type" in headers["access-control-allow-headers"]
            status, headers = await say(wire, preflight(path, OTHER))
            assert (status, headers["vary"]) == (204, "origin")
            assert not any(name.startswith("access-control") for name in headers)
            assert end.api.handled == []

    run(test())


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("", PAGE, None),
        ("*", OTHER, "*"),
        (PAGE, OTHER, PAGE),
        (f"{PAGE} https://second.example", "https://second.example", "https://second.example"),
        (f"{PAGE},https://second.example", OTHER, None),
        (f"{PAGE},https://second.example", "null", None),
        (f"{PAGE},https://second.example", f"{PAGE}.evil.example", None),
    ],
)
def test_who_may_read(origins: str, origin: str, allowed: str | None) -> None:
    """Answers and refusals alike name one origin, any, or none."""

    async def test() -> None:
        async with front_end() as end:
            allow(end, origins)
            wire = await end.connect()
            for path in ("/other", "/missing"):
                _, headers = await say(wire, post(b"x", path, headers=f"origin: {origin}\r\n"))
                assert headers.get(ALLOW) == allowed

    run(test())


def test_sealed_answers_can_be_read() -> None:
    """A page reads the gateway's answers, sealed or refused; who is no page stays on the hot path."""

    async def test() -> None:
        async with front_end(way=Way.PLAIN) as end:
            allow(end, PAGE)
            gateway, wire = attach(end), await end.connect()
            headers = SEALED + f"origin: {PAGE}\r\n"
            status, said = await say(wire, post(b"not sealed", paths.GATEWAY, headers=headers))
            assert (status, said[ALLOW]) == (400, PAGE)
            streamed = headers.replace("ohttp-req", "ohttp-chunked-req")
            status, said = await say(wire, post(b"not sealed", paths.GATEWAY, headers=streamed))
            assert (status, said[ALLOW]) == (400, PAGE)
            wire = await end.connect()
            assert (await ask(wire, gateway, b"/predictions/echo", b"hello")).content == b"hello"
            assert len(end.model.jobs) == 1

    run(test())


def test_what_is_no_preflight() -> None:
    """OPTIONS without an origin or a method in mind goes where it always went; so does all without CORS."""

    async def test() -> None:
        async with front_end() as end:
            wire = await end.connect()
            assert (await say(wire, preflight("/other", PAGE)))[0] == 200
            allow(end, PAGE, cors_methods="GET", cors_headers="x-a")
            assert (await say(wire, preflight("/other", PAGE, asked="")))[0] == 200
            _, headers = await say(wire, preflight("/other", PAGE))
            assert headers["access-control-allow-methods"] == "GET"
            assert headers["access-control-allow-headers"] == "x-a"

    run(test())

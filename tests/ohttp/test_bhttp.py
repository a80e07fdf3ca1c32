"""Binary HTTP: RFC 9292's examples, round trips, truncation and padding, and everything that is invalid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.ohttp import bhttp
from cloister.ohttp.bhttp import (
    Informational,
    Request,
    Response,
    parse_request,
    parse_response,
    render_request,
    render_response,
)
from cloister.ohttp.varint import render_varint
from tests.vectors import vector

POST = Request(b"POST", b"https", b"host:8443", b"/predictions/m", ((b"content-type", b"text/plain"),), b"hi")

tokens = st.text("abcdefghijklmnopqrstuvwxyz0123456789-!#$%&'*+.^_`|~", min_size=1, max_size=12)
names = tokens.map(str.encode)
values = st.binary(max_size=40).filter(lambda v: not set(v) & {0, 10, 13} and v.strip(b" \t") == v)
fields = st.lists(st.tuples(names, values), max_size=5).map(tuple)
requests = st.builds(
    Request,
    method=st.sampled_from([b"GET", b"POST", b"PUT", b"x-y"]),
    scheme=st.sampled_from([b"https", b"http"]),
    authority=st.sampled_from([b"", b"example.com", b"[::1]:8443"]),
    path=st.sampled_from([b"/", b"/a/b?c=%20d", b"*"]),
    headers=fields,
    content=st.binary(max_size=100),
    trailers=fields,
)
interim = st.builds(Informational, status=st.integers(100, 199), headers=fields)
responses = st.builds(
    Response,
    status=st.integers(200, 599),
    headers=fields,
    content=st.binary(max_size=100),
    trailers=fields,
    informational=st.lists(interim, max_size=3).map(tuple),
)


@pytest.fixture(scope="module")
def examples() -> dict[str, dict[str, Any]]:
    """RFC 9292, section 5, by name."""
    listed = json.loads(vector("bhttp/dev/rfc9292_examples.json").read_text())
    return {item["name"]: item for item in listed}


def as_text(listed: bhttp.Fields) -> list[list[str]]:
    """Fields as the vectors spell them."""
    return [[name.decode(), value.decode()] for name, value in listed]


def test_examples_of_the_rfc(examples: dict[str, dict[str, Any]]) -> None:
    """All four examples parse to what they say and are written again byte for byte."""
    assert len(examples) == 4
    for example in examples.values():
        raw, want = bytes.fromhex(example["hex"]), example["parsed"]
        options = {"indeterminate": want["framing"] >= 2, "padding": want["padding"]}
        message: Request | Response
        if "method" in want:
            message = parse_request(raw)
            control = (message.method, message.scheme, message.authority, message.path)
            assert control == tuple(want[key].encode() for key in ("method", "scheme", "authority", "path"))
            again = render_request(message, **options)
        else:
            message = parse_response(raw)
            assert message.status == want["status"]
            assert [[i.status, as_text(i.headers)] for i in message.informational] == want["info"]
            again = render_response(message, **options)
        assert as_text(message.headers) == want["headers"]
        assert message.content.decode() == want["content"]
        assert as_text(message.trailers) == want["trailers"]
        # The RFC prints the trailing 0 of an empty trailer section in some examples only.
        assert again.rstrip(b"\x00") == raw.rstrip(b"\x00")


def test_truncation_allowed_by_the_rfc(examples: dict[str, dict[str, Any]]) -> None:
    """Each number of bytes that the RFC says may be cut off leaves the same request."""
    for example in examples.values():
        raw = bytes.fromhex(example["hex"])
        for cut in range(1, example.get("optional_truncation_bytes", 0) + 1):
            assert parse_request(raw[:-cut]) == parse_request(raw)


def test_every_other_truncation_is_refused(examples: dict[str, dict[str, Any]]) -> None:
    """A message cut anywhere but before the header section, content or trailers is invalid."""
    for indeterminate in (False, True):
        raw = render_request(POST, indeterminate=indeterminate)
        end_of_control = raw.index(b"/predictions/m") + len(b"/predictions/m")
        # Cutting may leave a shorter message only before the header section, content, or trailers.
        allowed = {end_of_control, raw.index(b"hi") - 1, len(raw) - 1}
        for cut in range(len(raw)):
            if cut in allowed:
                parse_request(raw[:cut])
                continue
            with pytest.raises(MalformedInput):
                parse_request(raw[:cut])


@given(requests, st.booleans(), st.integers(0, 20))
def test_request_round_trip(request: Request, indeterminate: bool, padding: int) -> None:
    """What is written comes back, in both forms and with any padding."""
    assert parse_request(render_request(request, indeterminate=indeterminate, padding=padding)) == request


@given(responses, st.booleans(), st.integers(0, 20))
def test_response_round_trip(response: Response, indeterminate: bool, padding: int) -> None:
    """What is written comes back, interim responses and trailers included."""
    assert parse_response(render_response(response, indeterminate=indeterminate, padding=padding)) == response


@given(st.binary(max_size=200))
def test_random_bytes(raw: bytes) -> None:
    """Random bytes raise MalformedInput or parse; nothing else."""
    for parse in (parse_request, parse_response):
        try:
            parse(raw)
        except MalformedInput:
            continue


@given(requests, st.data())
def test_mutated_requests(request: Request, data: st.DataObject) -> None:
    """A changed byte raises MalformedInput or gives another message; nothing else."""
    raw = bytearray(render_request(request, indeterminate=data.draw(st.booleans())))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        parse_request(bytes(raw))
    except MalformedInput:
        return


def test_many_chunks_are_joined_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Content in 1-byte chunks is joined, up to the limit on their number."""
    start = bytes.fromhex("0204504f535405687474707300012f00")
    assert parse_request(start + b"\x01a" * 5000 + b"\x00").content == b"a" * 5000
    monkeypatch.setattr(bhttp, "MAX_CHUNKS", 10)
    assert parse_request(start + b"\x01a" * 10 + b"\x00").content == b"a" * 10
    with pytest.raises(MalformedInput, match="more than 10"):
        parse_request(start + b"\x01a" * 11 + b"\x00")


def test_unterminated_chunks_are_refused() -> None:
    """Content that ends without its terminator is a cut message, not a short one."""
    start = bytes.fromhex("0204504f535405687474707300012f00")
    with pytest.raises(MalformedInput, match="truncated"):
        parse_request(start + b"\x01a")


@pytest.mark.parametrize("framing", [1, 2, 3, 4, 63])
def test_framing_of_another_kind(framing: int) -> None:
    """A request does not parse as a response, nor under an unknown framing indicator."""
    raw = render_varint(framing) + render_request(POST)[1:]
    with pytest.raises(MalformedInput):
        parse_request(raw) if framing != 2 else parse_response(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"method": b""},
        {"method": b"PO ST"},
        {"scheme": b""},
        {"scheme": b"1https"},
        {"authority": b"a b"},
        {"authority": b"user@host"},
        {"path": b""},
        {"path": b"predictions"},
        {"path": b"/a b"},
        {"path": b"/a\r\nb"},
        {"path": b"/a#b"},
        {"path": b"/" + b"a" * 20_000},
        {"method": b"CONNECT"},
        {"headers": ((b":method", b"GET"),)},
        {"headers": ((b":protocol", b"websocket"),)},
        {"headers": ((b"a b", b"x"),)},
        {"headers": ((b"a", b"x\r\ny: z"),)},
        {"headers": ((b"a", b"x\x00"),)},
        {"headers": ((b"a", b" x"),)},
        {"headers": ((b"a", b"x\t"),)},
        {"headers": ((b"a", b"x" * 70_000),)},
        {"headers": ((b"a", b"x"),) * 257},
        {"trailers": ((b":path", b"/"),)},
    ],
    ids=lambda change: next(iter(f"{key}={str(value)[:24]}" for key, value in change.items())),
)
def test_invalid_parts_are_refused_both_ways(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is invalid is neither written nor, when another wrote it, read."""
    parts = {name: getattr(POST, name) for name in Request.__dataclass_fields__} | change
    bad = Request(**parts)
    with pytest.raises(MalformedInput):
        render_request(bad)
    with monkeypatch.context() as lax:
        lax.setattr(bhttp, "_check_control", lambda *_: None)
        lax.setattr(bhttp, "_check_field", lambda *_: None)
        for name in ("MAX_FIELDS", "MAX_SECTION_BYTES", "MAX_CONTROL_BYTES"):
            lax.setattr(bhttp, name, 1 << 30)
        written = [render_request(bad, indeterminate=form) for form in (False, True)]
    for raw in written:
        with pytest.raises(MalformedInput):
            parse_request(raw)


def test_empty_field_name() -> None:
    """A field has a name: in a section of known length an empty one is invalid."""
    with pytest.raises(MalformedInput, match="field name"):
        render_request(Request(b"GET", b"https", b"", b"/", ((b"", b"x"),)))
    with pytest.raises(MalformedInput, match="field name"):
        parse_request(b"\x00\x03GET\x05https\x00\x01/" + b"\x03\x00\x01x")


@pytest.mark.parametrize("status", [0, 99, 199, 600, 16000])
def test_status_out_of_range(status: int) -> None:
    """A final status is 200 to 599."""
    with pytest.raises(MalformedInput):
        render_response(Response(status))
    with pytest.raises(MalformedInput):
        parse_response(b"\x01" + render_varint(status))


def test_interim_responses_are_limited() -> None:
    """An endless row of interim responses is refused."""
    with pytest.raises(MalformedInput, match="interim"):
        parse_response(b"\x01" + b"\x40\x64\x00" * 17 + b"\x40\xc8")
    with pytest.raises(MalformedInput, match="interim"):
        render_response(Response(200, informational=(Informational(200),)))
    with pytest.raises(MalformedInput, match="interim"):
        render_response(Response(200, informational=(Informational(103),) * 17))


def test_padding_must_be_zero() -> None:
    """A non-zero byte after the message is refused."""
    raw = render_request(POST, padding=9)
    assert parse_request(raw) == POST
    with pytest.raises(MalformedInput, match="padding"):
        parse_request(raw[:-1] + b"\x01")


def test_names_come_out_in_lower_case() -> None:
    """Field names are compared in lower case, whoever wrote them."""
    raw = render_request(POST).replace(b"content-type", b"Content-TYPE")
    assert parse_request(raw).header(b"content-type") == b"text/plain"
    assert POST.header(b"accept") is None


def test_connect_has_an_authority_only() -> None:
    """CONNECT is written without scheme and path (RFC 9113, section 8.5)."""
    request = Request(b"CONNECT", b"", b"host:1", b"")
    assert parse_request(render_request(request)) == request


def test_repr_shows_no_content() -> None:
    """Content and fields stay out of reprs, and so out of logs and tracebacks."""
    request = Request(b"GET", b"https", b"", b"/canary", ((b"a", b"canary"),), b"canary")
    assert "canary" not in repr(request)
    assert "canary" not in repr(Response(200, ((b"a", b"canary"),), b"canary"))

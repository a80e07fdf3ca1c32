"""Heads: which are hot, what is remembered, and in how much memory."""

from __future__ import annotations

import pytest

from cloister.serve.http import heads
from cloister.serve.http.heads import Head, HeadCache, find_priority, read_head, render_without_upgrade

RAW = b"POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n"
HEADERS = [(b"host", b"a"), (b"content-length", b"3")]


def make_head(headers: list[tuple[bytes, bytes]] | None = None) -> Head:
    head = read_head("POST", b"/p", HEADERS if headers is None else headers, close=False)
    assert head is not None
    return head


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", HEADERS),
        ("POST", [(b"host", b"a")]),
        ("POST", [*HEADERS, (b"content-length", b"3")]),
        ("POST", [(b"content-length", b"3x")]),
        ("POST", [(b"content-length", b"9" * 16)]),
        ("POST", [*HEADERS, (b"transfer-encoding", b"chunked")]),
        ("POST", [*HEADERS, (b"upgrade", b"h2c")]),
        ("POST", [*HEADERS, (b"expect", b"100-continue")]),
    ],
)
def test_not_hot(method: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Anything but a plain request with one length is left to the general path."""
    assert read_head(method, b"/p", headers, close=False) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n" + RAW,
        b"\r\n\r\n",
        RAW[:-2] + b"x: y\r\n\r\n",
        RAW.replace(b"\r\n", b"\n", 1),
        RAW.replace(b"host: a\r\n", b"host: a\n\r\n"),
        RAW.replace(b"POST", b"PUT"),
        RAW + b"abc",
        RAW[:-4] + b"x" * heads.MAX_KEPT_BYTES + b"\r\n\r\n",
    ],
)
def test_only_a_bare_head_is_learnt(raw: bytes) -> None:
    """Bytes that are more or less than the head that was read, or long, are not remembered."""
    cache = HeadCache()
    cache.learn(raw, make_head())
    if raw == RAW + b"abc":  # whoever calls cuts at the empty line; the lines are right
        return
    assert len(cache) == 0


def test_bounded_memory() -> None:
    """At most two generations are kept, and what is asked for survives."""
    cache, head = HeadCache(), make_head()
    cache.learn(RAW, head)
    for number in range(5 * heads.KEPT):
        cache.learn(RAW.replace(b"host: a", b"host: %d" % number), make_head())
        if number % (heads.KEPT // 2) == 0:
            assert cache.get(RAW) is head
    assert len(cache) <= 2 * heads.KEPT
    cache.clear()
    assert cache.get(RAW) is None


@pytest.mark.parametrize(
    ("value", "urgency"),
    [
        (b"u=0", 0),
        (b"i, u=7", 7),
        (b"u=1, i", 1),
        (b"u=9", 3),
        (b"xu=1", 3),
        (b"u=12", 3),
        (b"", 3),
        (b"\xff", 3),
    ],
)
def test_priority(value: bytes, urgency: int) -> None:
    """RFC 9218's urgency; the default for what is not one."""
    assert find_priority([(b"priority", value)]) == urgency


def test_upgrade_is_left_out() -> None:
    """The wish for another protocol goes, everything else of the head stays."""
    headers = [
        (b"connection", b"Upgrade, HTTP2-Settings, close"),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"x"),
    ]
    raw = render_without_upgrade(b"/p?q", [*HEADERS, *headers], "POST")
    assert raw == b"POST /p?q HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"

"""Addresses in TorchServe's form."""

from __future__ import annotations

import pytest

from cloister.errors import ConfigError
from cloister.serve.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("HTTPS://localhost", Address("localhost", 443, tls=True)),
        ("http://0.0.0.0", Address("0.0.0.0", 80)),
        ("http://[::1]:8080/", Address("::1", 8080)),
        ("unix:/run/a b.sock", Address("", 0, path="/run/a b.sock")),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    """Host and port, their defaults, IPv6 and UNIX sockets."""
    assert parse_address(text, "x") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8080",
        "127.0.0.1:8080",
        "ftp://a:1",
        "http://",
        "http://a:0",
        "http://a:70000",
        "unix:x",
        "unix:/",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """Anything else names the setting that it stood for."""
    with pytest.raises(ConfigError, match="inference_address"):
        parse_address(text, "inference_address")


def test_local() -> None:
    """Loopback and UNIX sockets are reached from this machine only."""
    assert parse_address("http://127.0.0.1:1", "x").is_local
    assert parse_address("unix:/a", "x").is_local
    assert not parse_address("http://0.0.0.0:1", "x").is_local

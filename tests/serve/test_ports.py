"""Which ports an open server has, and what they are bound to."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve.address import Address
from cloister.serve.http.ways import Way
from cloister.serve.ports import bind_address, close_socket, open_places, server_tls
from cloister.settings import ServeSettings


def test_one_port_by_default() -> None:
    """An open server has one port; more of them by number, at the same host."""
    assert open_places(ServeSettings(mode="open")) == [(Address("127.0.0.1", 8080), Way.OPEN)]
    settings = ServeSettings(mode="open", host="::1", http_port=1, management_port=2, metrics_port=3)
    assert open_places(settings) == [
        (Address("::1", 1), Way.OPEN),
        (Address("::1", 2), Way.MANAGEMENT),
        (Address("::1", 3), Way.METRICS),
    ]


def test_addresses() -> None:
    """An address wins over host and port, and two equal ones become one port for both APIs."""
    settings = ServeSettings(
        mode="open",
        inference_address="http://127.0.0.1:1",
        management_address="http://127.0.0.1:1",
        metrics_address="unix:/m",
        metrics_port=5,
    )
    assert open_places(settings) == [
        (Address("127.0.0.1", 1), Way.ALL),
        (Address("", 0, path="/m"), Way.METRICS),
    ]


def test_unix_socket(tmp_path: Path) -> None:
    """A socket that a dead server left is replaced; one that answers, or another file, is not."""
    address = Address("", 0, path=str(tmp_path / "s"))
    first = bind_address(address)
    first.close()
    second = bind_address(address)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660
    second.listen()
    with pytest.raises(ConfigError, match="another server"):
        bind_address(address)
    close_socket(second, address)
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        bind_address(address)
    assert (tmp_path / "s").read_text() == "mine"


def test_taken_port() -> None:
    """A port that somebody has is a configuration error."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen"):
            bind_address(Address("127.0.0.1", taken.getsockname()[1]))


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    """No certificate, no file, no key and a wrong password are one line each."""
    (tmp_path / "c.pem").write_text("no certificate")
    (tmp_path / "k.p12").write_bytes(b"no keystore")
    for settings in (
        ServeSettings(),
        ServeSettings(certificate=str(tmp_path / "none"), private_key=str(tmp_path / "none")),
        ServeSettings(certificate=str(tmp_path / "c.pem"), private_key=str(tmp_path / "c.pem")),
        ServeSettings(keystore=str(tmp_path / "k.p12"), keystore_password="x"),
    ):
        with pytest.raises(ConfigError, match="certificate"):
            server_tls(settings)

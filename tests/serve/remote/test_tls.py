"""Tests of ``cloister.serve.remote.tls``."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from cloister.errors import TransportError
from cloister.serve.remote.tls import JOIN, LinkKey, make_link_key, peer_spki
from tests.fakes.sealed_service import TlsKey


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a TLS connection, each having heard the other."""
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.settimeout(5)
    ends: list[ssl.SSLSocket] = []
    failed: list[OSError] = []

    def answer() -> None:
        try:
            ends.append(server.wrap_socket(far, server_side=True))
            ends[0].sendall(b"x")
        except OSError as error:
            failed.append(error)
            far.close()

    thread = threading.Thread(target=answer)
    thread.start()
    opened: list[socket.socket] = [near]
    try:
        wrapped = client.wrap_socket(near)
        opened.append(wrapped)
        heard = wrapped.recv(1)
    except OSError:
        for sock in opened:
            sock.close()
        thread.join()
        for sock in (far, *ends):
            sock.close()
        raise
    finally:
        thread.join()
    if failed or heard != b"x":
        wrapped.close()
        raise failed[0] if failed else ConnectionError
    return ends[0], wrapped


@pytest.fixture(scope="module")
def keys() -> tuple[LinkKey, LinkKey]:
    """A frontend's and a host's."""
    return make_link_key(), make_link_key()


def test_each_sees_the_key_of_the_other(keys: tuple[LinkKey, LinkKey]) -> None:
    """TLS 1.3 with both certificates; each side learns exactly the other's key, and nothing is resumed."""
    here, there = keys
    server, client = shake(here.server, there.join)
    assert peer_spki(server) == there.spki  # type: ignore[arg-type]
    assert peer_spki(client) == here.spki  # type: ignore[arg-type]
    assert (server.version(), server.selected_alpn_protocol()) == ("TLSv1.3", JOIN)
    assert client.session is None or not client.session.has_ticket
    server.close()
    client.close()


def test_no_certificate_no_connection(keys: tuple[LinkKey, LinkKey], tmp_path: Path) -> None:
    """A client without a certificate, or TLS 1.2, does not get as far as a message."""
    here, there = keys
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(OSError):
        shake(here.server, anonymous)
    old = make_link_key().join
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError):
        shake(here.server, old)
    with pytest.raises(OSError):
        shake(TlsKey.make(tmp_path).context(), there.join)
    with pytest.raises(TransportError):
        peer_spki(None)

"""A server's keys: new at each start, and never on a disk."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import get_args, get_type_hints

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.ohttp.capsule import KeyConfig
from cloister.serve.identity import OHTTP_KEMS, make_keys
from cloister.settings import ServeSettings


def test_tls_serves_the_reported_key() -> None:
    """A TLS handshake shows a certificate of exactly the key that evidence will bind."""
    keys = make_keys("127.0.0.1")
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    server = threading.Thread(target=lambda: keys.tls.context().wrap_socket(theirs, server_side=True).close())
    server.start()
    with context.wrap_socket(ours) as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert connection.version() == "TLSv1.3"
    server.join()
    assert certificate is not None
    spki = x509.load_der_x509_certificate(certificate).public_key()
    assert spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == keys.tls_spki


def test_keys_are_new_each_time() -> None:
    """Two starts share no key."""
    one, other = make_keys("localhost"), make_keys("::1")
    assert one.tls_spki != other.tls_spki
    assert one.gateway.key_config != other.gateway.key_config


@pytest.mark.parametrize("name", get_args(get_type_hints(ServeSettings)["ohttp_kem"]))
def test_kind_of_the_sealing_key(name: str) -> None:
    """Every kind that the settings know makes a key of that kind, and a rotation keeps to it."""
    gateway = make_keys("localhost", kem=OHTTP_KEMS[name]).gateway
    for _ in range(2):
        assert KeyConfig.parse(gateway.key_config).public.kem is OHTTP_KEMS[name]
        gateway.rotate()

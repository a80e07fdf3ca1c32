"""The names in a client certificate: each with its kind, in one order, and garbage is no certificate."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.crypto.client_certificates import read_client_certificate
from cloister.errors import MalformedInput, StaleEvidence
from tests.fakes.authority import Authority

SITE = Authority()


def der(*names: x509.GeneralName) -> bytes:
    """A certificate with these names besides its subject."""
    pem = SITE.issue("Alice", *names).encode()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


EXAMPLE = der(x509.DNSName("a.example"), x509.UniformResourceIdentifier("spiffe://a"), x509.RFC822Name("a@b"))


def test_names() -> None:
    """URI, mail address, host, subject, fingerprint: the first is what the bearer is called."""
    found = read_client_certificate(EXAMPLE)
    assert found.names[:4] == ("uri:spiffe://a", "email:a@b", "dns:a.example", "subject:CN=Alice,O=Example")
    assert (found.name, len(found.fingerprint)) == ("uri:spiffe://a", 32)
    assert read_client_certificate(der()).name == "subject:CN=Alice,O=Example"


def test_one_kind_of_name_is_not_another() -> None:
    """A host name that looks like a URI stays a host name."""
    assert read_client_certificate(der(x509.DNSName("spiffe://a"))).name == "dns:spiffe://a"


def test_time() -> None:
    """A connection may outlive its certificate."""
    found, now = read_client_certificate(EXAMPLE), datetime.now(UTC)
    found.check_time(now)
    for wrong in (now - timedelta(days=3), now + timedelta(days=3)):
        with pytest.raises(StaleEvidence):
            found.check_time(wrong)


@given(st.binary(max_size=200))
def test_garbage(raw: bytes) -> None:
    """Arbitrary bytes are no certificate."""
    with pytest.raises(MalformedInput):
        read_client_certificate(raw)


@given(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 255))
@example(12, 1)  # version 2 of X.509, which nobody uses
def test_a_changed_byte(at: int, value: int) -> None:
    """A damaged certificate is read or refused, and nothing else happens."""
    with contextlib.suppress(MalformedInput):
        read_client_certificate(EXAMPLE[:at] + bytes([value]) + EXAMPLE[at + 1 :])

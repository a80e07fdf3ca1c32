"""Client certificates at TLS: whose are believed, and settings that cannot be."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve.client_tls import ask_for_certificates, read_client_ca
from cloister.serve.identity import make_keys
from cloister.settings import ServeSettings
from tests.fakes.authority import Authority


def context(serve: ServeSettings) -> ssl.SSLContext:
    """A server's context, after the settings were seen to."""
    return ask_for_certificates(make_keys("127.0.0.1").tls, serve).context()


def test_modes(tmp_path: Path) -> None:
    """Without authorities nobody is asked; with them everybody is, and refused only if it is required."""
    ca = tmp_path / "authority.pem"
    ca.write_bytes(Authority().pem)
    assert context(ServeSettings()).verify_mode == ssl.CERT_NONE
    assert context(ServeSettings(client_ca=str(ca))).verify_mode == ssl.CERT_OPTIONAL
    required = ServeSettings(client_ca=str(ca), client_certificates="required")
    assert context(required).verify_mode == ssl.CERT_REQUIRED
    assert read_client_ca(required) == ca.read_bytes()


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    """No file, none of certificates, one that is no authority's, or nobody to require them of."""
    for name, content in (("empty", b""), ("text", b"x"), ("leaf", Authority().issue("x").encode())):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError):
            context(ServeSettings(client_ca=str(tmp_path / name)))
    with pytest.raises(ConfigError):
        context(ServeSettings(client_ca=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="client_ca is not set"):
        context(ServeSettings(client_certificates="required"))


def test_authorities_are_read_once(tmp_path: Path) -> None:
    """Whoever exchanges the file between two looks at it changes nothing: evidence speaks of the first."""
    ca = tmp_path / "authority.pem"
    first = Authority().pem
    ca.write_bytes(first)
    settings = ServeSettings(client_ca=str(ca))
    assert read_client_ca(settings) == first
    ca.write_bytes(Authority().pem)
    assert ask_for_certificates(make_keys("127.0.0.1").tls, settings).client_ca.encode() == first
    assert read_client_ca(settings) == first

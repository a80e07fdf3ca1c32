"""Client certificates at a server's TLS ports: whose are believed, and whether one has to be shown.

TLS verifies the chain; ``cloister.serve.access`` says whose the certificate is. The authorities are read
once, at the start, so that what TLS verifies by is what evidence binds.
"""

from __future__ import annotations

import functools
import ssl
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from cloister.crypto.certificates import UNREADABLE
from cloister.errors import ConfigError
from cloister.serve.tls import TlsKeys
from cloister.settings import ServeSettings


def read_client_ca(serve: ServeSettings) -> bytes:
    """PEM of the authorities; empty where no certificates are asked for.

    Raises:
        ConfigError: it cannot be read, holds no authority, or certificates are required of nobody's.
    """
    if not serve.client_ca:
        if serve.client_certificates == "required":
            raise ConfigError("serve.client_certificates is required, and serve.client_ca is not set")
        return b""
    return _read_once(serve.client_ca)


@functools.cache
def _read_once(path: str) -> bytes:
    """What a file held when this process first asked: each port asks for it, and so does the evidence."""
    try:
        pem = Path(path).read_bytes()
        found = x509.load_pem_x509_certificates(pem)
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(f"cannot read certificates from {path}") from error
    if not all(map(_is_authority, found)):
        raise ConfigError(f"{path} holds a certificate that may not sign others")
    return pem


def ask_for_certificates(keys: TlsKeys, serve: ServeSettings) -> TlsKeys:
    """The keys for TLS that verifies client certificates as the settings say; unchanged if they say nothing.

    Raises:
        ConfigError: as ``read_client_ca``.
    """
    pem = read_client_ca(serve)
    if not pem:
        return keys
    try:
        required = serve.client_certificates == "required"
        asking = replace(keys, client_ca=pem.decode("ascii"), client_required=required)
        asking.context()
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot use the certificates of {serve.client_ca}") from error
    return asking


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False

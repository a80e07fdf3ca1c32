"""The certificate and key of the cache's HTTPS, in memory: the key never has a name on a disk."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.errors import ConfigError
from cloister.kbs.cache.identity import file_in_memory
from cloister.kbs.cache.keep import KeyKeep
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.tls import make_certificate
from cloister.settings import CacheSettings


@contextlib.contextmanager
def tls_pem(cache: CacheSettings, keep: KeyKeep, now: datetime) -> Iterator[Path]:
    """A path to certificate and key, good during the block.

    Either the owner keeps them at the broker, and then whoever shows the certificate is an attested cache; or
    they are made anew, and a client has only the operator's word for the certificate. The keys themselves are
    encrypted to the client's attested key either way.

    Raises:
        ConfigError: there is no certificate with its key, or the public one cannot be written.
        KeyUnavailable, TransportError: the broker did not give them.
    """
    with contextlib.ExitStack() as stack:
        if cache.tls:
            kept = stack.enter_context(keep.lend(ResourcePath.from_uri(cache.tls)))
            path = stack.enter_context(file_in_memory(kept))
        else:
            path = stack.enter_context(file_in_memory(_make(cache, now)))
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
        except (OSError, ValueError) as error:
            raise ConfigError("cache.tls does not name a PEM with a certificate and its key") from error
        yield path


def _make(cache: CacheSettings, now: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    public = make_certificate(key, cache.host, now).public_bytes(Encoding.PEM)
    if cache.certificate:
        try:
            Path(cache.certificate).write_bytes(public)
        except OSError as error:
            raise ConfigError(f"cannot write {cache.certificate}: {error.strerror}") from error
    return public + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

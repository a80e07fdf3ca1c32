"""A server's TLS key and certificate, in memory, and what Python's ``ssl`` makes of them.

They are kept as PEM, because a context cannot be handed to another process. ``ssl`` reads keys from files
only, so it gets a memfd: a key that exists in memory belongs on no disk.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class TlsKeys:
    """A private key with its certificate chain."""

    pem: bytes = field(repr=False)
    """The key, not encrypted, and the certificates for it, the server's own first."""
    minimum: Literal["TLSv1_2", "TLSv1_3"] = "TLSv1_2"
    """The oldest version that is spoken."""
    client_ca: str = ""
    """PEM of the authorities whose client certificates are believed; empty asks callers for none."""
    client_required: bool = False
    """Refuse callers without one."""

    def context(self) -> ssl.SSLContext:
        """What a listening socket needs.

        Raises:
            OSError: no key or no certificate in it, or the two do not belong together (``ssl.SSLError``).
            ValueError: the key is encrypted, and nobody is there to ask for its password.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion[self.minimum]
        context.set_alpn_protocols(["http/1.1"])
        descriptor = os.memfd_create("cloister-tls", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self.pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
            os.pwrite(descriptor, bytes(len(self.pem)), 0)
        finally:
            os.close(descriptor)
        if self.client_ca:
            context.load_verify_locations(cadata=self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if self.client_required else ssl.CERT_OPTIONAL
        return context


def _no_password() -> str:
    raise ValueError("the private key is encrypted, and there is nobody to ask for its password")

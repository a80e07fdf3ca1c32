"""X.509 certificates and revocation lists as ``cryptography`` reads them."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    Warning,  # where the interpreter turns warnings into errors
)
"""What ``cryptography`` raises for a certificate or CRL that it cannot read; they have no common root."""

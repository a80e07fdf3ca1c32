"""Intel's root, pinned by its key, and the choice of the root that a chain ends in.

The root certificate exists with two dates of expiry and one key. What is pinned is the key (SHA-256 of the
SubjectPublicKeyInfo), so both certificates are the same root here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import UntrustedRoot

INTEL_ROOT_SPKI_SHA256 = "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"
_INTEL_ROOT_PEM = b"""-----BEGIN CERTIFICATE-----
MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIw
aDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENv
cnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJ
BgNVBAYTAlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgG
A1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0
aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYT
AlVTMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi7
1OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxFP2sJBK5zlKOB
uzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJ
MEegRaBDhkFodHRwczovL2NlcnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50
ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInzg7SV
Ur9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYI
KoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9CiSDcNoowLuPRLsWGf/Yi7GSX94BgwTwg
AiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI=
-----END CERTIFICATE-----
"""


@cache
def intel_roots() -> tuple[x509.Certificate, ...]:
    """Intel's production root of SGX and TDX attestation."""
    return (x509.load_pem_x509_certificate(_INTEL_ROOT_PEM),)


def is_intel_root(root: x509.Certificate) -> bool:
    """Whether this certificate holds Intel's key; a chain that ends in any other root is simulated."""
    return hashlib.sha256(spki(root)).hexdigest() == INTEL_ROOT_SPKI_SHA256


def find_root(intermediate: x509.Certificate, roots: Sequence[x509.Certificate]) -> x509.Certificate:
    """The one of ``roots`` whose key signed ``intermediate``.

    Raises:
        UntrustedRoot: none did.
    """
    for root in roots:
        if is_issued_by(intermediate, root):
            return root
    raise UntrustedRoot(
        f"certificate chain does not end in a trusted root: its issuer is"
        f" {intermediate.issuer.rfc4514_string()!r}, and none of {len(roots)} trusted keys signed it",
        hint="a simulated platform's root must be trusted explicitly",
    )


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer``'s key signed ``certificate`` and their names agree."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def spki(certificate: x509.Certificate) -> bytes:
    """DER of the SubjectPublicKeyInfo."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

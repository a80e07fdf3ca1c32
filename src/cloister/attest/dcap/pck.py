"""The SGX extension of a PCK certificate: which processor this is, and at which security version.

============================== =============== ====================================================
object identifier              type            meaning
============================== =============== ====================================================
1.2.840.113741.1.13.1          sequence        the extension
.1                             octets (16)     PPID, identity of the platform
.2                             sequence        TCB: .2.1 to .2.16 component SVNs, .2.17 PCESVN, .2.18 CPUSVN
.3                             octets (2)      PCEID
.4                             octets (6)      FMSPC, family and model of the platform
.5                             enumerated      SGX type: 0 standard, 1 scalable, 2 with integrity
.6                             octets (16)     platform instance id (multi-package platforms)
.7                             sequence        configuration: dynamic platform, cached keys, SMT
============================== =============== ====================================================

Source: Intel SGX PCK Certificate and CRL Profile, revision 1.5, section 1.3.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import dcap_qvl  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import MalformedInput

SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PckExtension:
    """What a PCK certificate says of its processor."""

    ppid: bytes
    cpu_svn: bytes
    """16 component SVNs."""
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    platform_instance_id: bytes | None


def has_sgx_extension(certificate: x509.Certificate) -> bool:
    """Whether this is a PCK certificate."""
    return any(extension.oid == SGX_EXTENSION for extension in certificate.extensions)


def parse_pck_extension(certificate: x509.Certificate) -> PckExtension:
    """The SGX extension of ``certificate``.

    Raises:
        MalformedInput: there is none, or it lacks a field.
    """
    try:
        parsed = dcap_qvl.parse_pck_extension_from_pem(certificate.public_bytes(Encoding.PEM))
    except ValueError as error:
        raise MalformedInput("PCK certificate has no readable SGX extension") from error
    extension = PckExtension(
        ppid=bytes(parsed.ppid),
        cpu_svn=bytes(parsed.cpu_svn),
        pce_svn=parsed.pce_svn,
        pce_id=bytes(parsed.pce_id),
        fmspc=bytes(parsed.fmspc),
        platform_instance_id=parsed.platform_instance_id,
    )
    if (len(extension.cpu_svn), len(extension.pce_id), len(extension.fmspc)) != (16, 2, 6):
        raise MalformedInput("PCK certificate: CPUSVN, PCEID or FMSPC has the wrong length")
    return extension

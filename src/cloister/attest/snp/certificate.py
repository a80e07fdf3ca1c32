"""AMD's certificates: reading them, and checking RSASSA-PSS signatures over them and over CRLs.

AMD gives every VCEK and VLEK the serial number zero, which RFC 5280 forbids and which ``cryptography``
announces to refuse. So the serial number is read here, and ``cryptography`` gets to see a one instead; the
signature is checked over AMD's own bytes.

Source: AMD 57230 (VCEK Certificate and KDS Interface) revision 1.00, chapter 3; RFC 8017 section 8.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from cloister.attest.der import EXPLICIT_0, INTEGER, SEQUENCE, check_signature_form, element
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import BadSignature, MalformedInput

MAX_CERTIFICATE_BYTES = 16 * 1024
SALT_BYTES = 48


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that has been read; its signature has not been checked."""

    der: bytes
    parsed: x509.Certificate
    """As ``cryptography`` sees it; its serial number may be wrong, use ``serial``."""
    serial: int
    signed: bytes
    """What the signature is over."""
    name: str
    """The subject's common name."""
    not_before: datetime
    not_after: datetime

    def public_key_bytes(self) -> bytes:
        """DER of the SubjectPublicKeyInfo."""
        return spki(self.parsed)


def load_certificate(der: bytes, what: str) -> Certificate:
    """Read one certificate in DER.

    Raises:
        MalformedInput: it is not one, or has a negative serial number or another signature algorithm than
            RSASSA-PSS.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise MalformedInput(f"{what} has {len(der)} bytes, at most {MAX_CERTIFICATE_BYTES} are read")
    begin, end, serial_at, serial = _find_serial(der, what)
    check_signature_form(der, what)
    readable = der if serial else der[:serial_at] + b"\x01" + der[serial_at + 1 :]
    try:
        parsed = x509.load_der_x509_certificate(readable)
        name = common_name(parsed)
        _ = parsed.extensions, parsed.issuer, parsed.public_key()
        not_before, not_after = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    except UNREADABLE as error:
        raise MalformedInput(f"{what} is not a readable certificate") from error
    if parsed.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS:
        raise MalformedInput(f"{what} is not signed with RSASSA-PSS")
    return Certificate(der, parsed, serial, der[begin:end], name, not_before, not_after)


def verify_issued_by(certificate: Certificate, issuer: x509.Certificate, what: str) -> None:
    """Establish that ``issuer``'s key signed ``certificate``, and that their names agree.

    Raises:
        BadSignature: it did not.
    """
    if certificate.parsed.issuer != issuer.subject:
        raise BadSignature(f"{what} names another issuer than {common_name(issuer)!r}")
    verify_pss(issuer, certificate.parsed.signature, certificate.signed, what)


def verify_pss(issuer: x509.Certificate, signature: bytes, signed: bytes, what: str) -> None:
    """RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt: the only form that AMD uses.

    Raises:
        BadSignature: it does not verify, or the issuer has no RSA key.
    """
    key = issuer.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise BadSignature(f"{what}: the issuer {common_name(issuer)!r} has no RSA key")
    try:
        key.verify(signature, signed, padding.PSS(padding.MGF1(hashes.SHA384()), SALT_BYTES), hashes.SHA384())
    except InvalidSignature as error:
        raise BadSignature(f"{what} is not signed by {common_name(issuer)!r}") from error


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate may issue others: both extensions say so (RFC 5280, 4.2.1.3 and 4.2.1.9)."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and usage.key_cert_sign


def common_name(certificate: x509.Certificate) -> str:
    """The subject's one common name; empty if it has none or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def spki(certificate: x509.Certificate) -> bytes:
    """DER of the SubjectPublicKeyInfo."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _find_serial(der: bytes, what: str) -> tuple[int, int, int, int]:
    """Begin and end of what is signed, where the serial number is, and its value.

    Certificate ::= SEQUENCE { SEQUENCE { [0] version, INTEGER serialNumber, SEQUENCE signature, ... }, ... }
    """
    try:
        inner, end = element(der, 0, SEQUENCE)
        if end != len(der):
            raise MalformedInput(f"{what} is followed by other bytes")
        at, signed_end = element(der, inner, SEQUENCE)
        if der[at] == EXPLICIT_0:
            at = element(der, at, EXPLICIT_0)[1]
        serial_at, serial_end = element(der, at, INTEGER)
    except (IndexError, ValueError) as error:
        raise MalformedInput(f"{what} is not a certificate in DER") from error
    serial = int.from_bytes(der[serial_at:serial_end], "big", signed=True)
    if serial < 0 or not 0 < serial_end - serial_at <= 20 or (serial == 0 and serial_end - serial_at != 1):
        raise MalformedInput(f"{what} has no acceptable serial number")
    return inner, signed_end, serial_at, serial

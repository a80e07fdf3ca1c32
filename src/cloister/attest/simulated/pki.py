"""Keys, certificates and revocation lists of a simulated Intel platform.

Root CA -> PCK Platform CA -> PCK certificate, and Root CA -> TCB Signing, all P-256 with SHA-256. Subjects
are Intel's, because quote verifiers look at them; the locality says what this is.

Source: Intel SGX PCK Certificate and CRL Profile, revision 1.5, sections 1.3 and 1.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

VALIDITY = timedelta(days=3652)
_BACKDATED = timedelta(hours=1)
_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_CRL_URL = "https://simulated.invalid/IntelSGXRootCA.der"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformTcb:
    """What the PCK certificate says of the processor."""

    ppid: bytes
    """16 bytes."""
    cpu_svn: bytes
    """16 component SVNs."""
    pce_svn: int
    pce_id: bytes
    """2 bytes."""
    fmspc: bytes
    """6 bytes."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_root(now: datetime) -> Authority:
    """A self-signed root CA, valid ten years from ``now``."""
    key = new_key()
    return Authority(_certificate("Intel SGX Root CA", key, None, now, path_length=1), key)


def make_platform_ca(root: Authority, now: datetime) -> Authority:
    """The intermediate CA that issues PCK certificates."""
    key = new_key()
    return Authority(_certificate("Intel SGX PCK Platform CA", key, root, now, path_length=0), key)


def make_tcb_signing(root: Authority, now: datetime) -> Authority:
    """The key that signs TCB info and QE identity."""
    key = new_key()
    return Authority(_certificate("Intel SGX TCB Signing", key, root, now, path_length=None), key)


def make_pck(platform_ca: Authority, tcb: PlatformTcb, now: datetime) -> Authority:
    """The processor's certificate, whose key signs QE reports."""
    key = new_key()
    extension = x509.UnrecognizedExtension(_SGX_EXTENSION, sgx_extension(tcb))
    certificate = _certificate(
        "Intel SGX PCK Certificate", key, platform_ca, now, path_length=None, extension=extension
    )
    return Authority(certificate, key)


def make_crl(
    issuer: Authority, now: datetime, next_update: datetime, *, number: int = 1, revoked: tuple[int, ...] = ()
) -> bytes:
    """A DER revocation list of ``issuer`` that holds from ``now`` to ``next_update``."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
        )
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def sgx_extension(tcb: PlatformTcb) -> bytes:
    """DER of the SGX extension: PPID, TCB, PCEID, FMSPC, SGX type 0 (standard)."""
    components = [_entry(f"2.{index}", _integer(svn)) for index, svn in enumerate(tcb.cpu_svn, start=1)]
    levels = [*components, _entry("2.17", _integer(tcb.pce_svn)), _entry("2.18", _octets(tcb.cpu_svn))]
    return _sequence(
        _entry("1", _octets(tcb.ppid)),
        _entry("2", _sequence(*levels)),
        _entry("3", _octets(tcb.pce_id)),
        _entry("4", _octets(tcb.fmspc)),
        _entry("5", b"\x0a\x01\x00"),
    )


def _certificate(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Authority | None,
    now: datetime,
    *,
    path_length: int | None,
    extension: x509.UnrecognizedExtension | None = None,
) -> x509.Certificate:
    is_ca = path_length is not None
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Simulated platform, protects nothing"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )
    issuer_key = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
        .add_extension(_key_usage(is_ca=is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(
            x509.CRLDistributionPoints(
                [x509.DistributionPoint([x509.UniformResourceIdentifier(_CRL_URL)], None, None, None)]
            ),
            critical=False,
        )
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _entry(suffix: str, value: bytes) -> bytes:
    """One pair (OID below the SGX extension, value)."""
    arcs = [int(arc) for arc in f"{_SGX_EXTENSION.dotted_string}.{suffix}".split(".")]
    body = bytes([arcs[0] * 40 + arcs[1]]) + b"".join(_base128(arc) for arc in arcs[2:])
    return _sequence(_tlv(0x06, body), value)


def _base128(number: int) -> bytes:
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))


def _integer(number: int) -> bytes:
    return _tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _octets(raw: bytes) -> bytes:
    return _tlv(0x04, raw)


def _sequence(*items: bytes) -> bytes:
    return _tlv(0x30, b"".join(items))


def _tlv(tag: int, body: bytes) -> bytes:
    length = len(body)
    if length < 0x80:
        return bytes([tag, length]) + body
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + body

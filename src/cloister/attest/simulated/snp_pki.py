"""Keys, certificates and revocation lists of a simulated AMD.

ARK -> ASK -> VCEK, or ARK -> ASVK -> VLEK. Authorities have RSA-4096 keys and sign with RSASSA-PSS and
SHA-384, endorsement keys are P-384. Subjects are AMD's, because verifiers look at them; the locality says
what this is.

Source: AMD 57230 (VCEK Certificate and KDS Interface) revision 1.00, chapters 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attest.snp.extensions import ARC, TCB_ARCS
from cloister.attest.snp.roots import authority_name, root_name
from cloister.attest.snp.tcb import tcb_layout

AUTHORITY_VALIDITY = timedelta(days=25 * 365)
KEY_VALIDITY = timedelta(days=7 * 365)
CRL_VALIDITY = timedelta(days=365)
_BACKDATED = timedelta(hours=1)
_KEY_SUBJECTS = {"vcek": "SEV-VCEK", "vlek": "SEV-VLEK"}
_PADDING = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384.digest_size)


@dataclass(frozen=True, slots=True)
class SnpAuthority:
    """An authority's certificate and its private key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedChip:
    """What the certificate says of the processor."""

    product: str
    """Product line: Milan, Genoa or Turin."""
    kind: str
    """``vcek`` or ``vlek``."""
    tcb: bytes
    """The eight bytes of a TCB version."""
    hwid: bytes
    """64 bytes, Turin 8."""
    csp_id: str = "CN=simulated.invalid"
    product_name: str = ""
    """Empty: the product line."""


def new_rsa_key() -> rsa.RSAPrivateKey:
    """A new RSA-4096 key; takes about a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


def make_ark(product: str, key: rsa.RSAPrivateKey, now: datetime) -> SnpAuthority:
    """A self-signed root."""
    return SnpAuthority(_certificate(root_name(product), key, None, now, serial=1, path_length=1), key)


def make_authority(
    ark: SnpAuthority, product: str, kind: str, key: rsa.RSAPrivateKey, now: datetime, *, serial: int = 2
) -> SnpAuthority:
    """The authority that issues VCEKs (ASK) or VLEKs (ASVK)."""
    name = authority_name(product, kind)
    return SnpAuthority(_certificate(name, key, ark, now, serial=serial, path_length=0), key)


def make_endorsement(
    authority: SnpAuthority, chip: SimulatedChip, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.Certificate:
    """The certificate of a VCEK or VLEK."""
    builder = _builder(_KEY_SUBJECTS[chip.kind], authority.certificate.subject, now, KEY_VALIDITY, serial=1)
    builder = builder.public_key(key)
    for arc, value in _extensions(chip).items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{ARC}.{arc}"), value)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(authority.key, hashes.SHA384(), rsa_padding=_PADDING)


def make_ark_crl(ark: SnpAuthority, now: datetime, *, revoked: tuple[int, ...] = ()) -> bytes:
    """A DER revocation list of the root, good for a year."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ark.certificate.subject)
        .last_update(now - _BACKDATED)
        .next_update(now + CRL_VALIDITY)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ark.key.public_key()), critical=False
        )
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(ark.key, hashes.SHA384(), rsa_padding=_PADDING).public_bytes(Encoding.DER)


def _certificate(
    name: str,
    key: rsa.RSAPrivateKey,
    issuer: SnpAuthority | None,
    now: datetime,
    *,
    serial: int,
    path_length: int,
) -> x509.Certificate:
    issuer_name = _name(name) if issuer is None else issuer.certificate.subject
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=issuer is None,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, issuer_name, now, AUTHORITY_VALIDITY, serial=serial)
        .public_key(key.public_key())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
    )
    signer = key if issuer is None else issuer.key
    return builder.sign(signer, hashes.SHA384(), rsa_padding=_PADDING)


def _builder(
    name: str, issuer: x509.Name, now: datetime, validity: timedelta, *, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .serial_number(serial)
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + validity)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Simulated platform, protects nothing"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _extensions(chip: SimulatedChip) -> dict[str, bytes]:
    values = {
        "1": _integer(1 if chip.product == "Turin" else 0),
        "2": _ia5_string(chip.product_name or chip.product),
    }
    for component, version in zip(tcb_layout(chip.product), chip.tcb, strict=True):
        values[TCB_ARCS[component]] = _integer(version)
    if chip.kind == "vcek":
        values["4"] = chip.hwid
    else:
        values["5"] = _ia5_string(chip.csp_id)
    return values


def _integer(number: int) -> bytes:
    octets = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return bytes([0x02, len(octets)]) + octets


def _ia5_string(text: str) -> bytes:
    return bytes([0x16, len(text)]) + text.encode("ascii")

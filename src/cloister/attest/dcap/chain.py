"""The certificate chains of DCAP: exactly the ones that Intel issues, and nothing more general.

======================= ==================================== =========================================
chain                   certificates                         found in
======================= ==================================== =========================================
PCK                     PCK, PCK Platform or Processor CA,   the quote
                        root
PCK CRL issuer          PCK CA, root                         collateral
TCB signing             TCB Signing, root                    collateral, for TCB info and QE identity
======================= ==================================== =========================================

Signatures are checked here, dates and revocation where the time is known. The root's own dates do not
matter: its key is what is trusted.

Source: Intel SGX PCK Certificate and CRL Profile, revision 1.5, section 1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attest.dcap.pck import PckExtension, has_sgx_extension, parse_pck_extension
from cloister.attest.dcap.roots import find_root, is_issued_by, spki
from cloister.attest.der import check_signature_form
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import BadSignature, EndorsementMismatch, MalformedInput, UntrustedRoot

PCK_NAME = "Intel SGX PCK Certificate"
PCK_CA_NAMES = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
TCB_SIGNING_NAME = "Intel SGX TCB Signing"
MAX_CHAIN_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class PckChain:
    """A verified PCK chain, and what its certificate says of the processor."""

    pck: x509.Certificate
    authority: x509.Certificate
    root: x509.Certificate
    extension: PckExtension


@lru_cache(maxsize=256)
def open_pck_chain(pem: bytes, roots: tuple[x509.Certificate, ...]) -> PckChain:
    """The PCK chain of a quote, verified up to one of ``roots``.

    Raises:
        MalformedInput: not PEM of exactly these certificates.
        UntrustedRoot, BadSignature: the chain does not hold.
    """
    pck, authority, own_root = _parse_pem(pem, 3, "PCK chain")
    root = _trusted_root(authority, own_root, roots, "PCK chain")
    _expect_authority(authority, PCK_CA_NAMES)
    _expect_leaf(pck, PCK_NAME, authority)
    return PckChain(pck, authority, root, parse_pck_extension(pck))


def open_crl_issuer_chain(pem: str, root: x509.Certificate) -> x509.Certificate:
    """The PCK CA that issued a CRL, verified up to ``root``."""
    authority, own_root = _parse_pem(pem.encode(), 2, "PCK CRL issuer chain")
    _trusted_root(authority, own_root, (root,), "PCK CRL issuer chain")
    _expect_authority(authority, PCK_CA_NAMES)
    return authority


def open_tcb_signing_chain(pem: str, root: x509.Certificate, what: str) -> x509.Certificate:
    """The certificate that signs TCB info or QE identity, verified up to ``root``.

    Only Intel's TCB Signing certificate will do. A PCK certificate ends in the same root and has the same
    key usage, and its key is in the hands of whoever has extracted it from one processor.
    """
    signer, own_root = _parse_pem(pem.encode(), 2, f"{what} issuer chain")
    _trusted_root(signer, own_root, (root,), f"{what} issuer chain")
    _expect_leaf(signer, TCB_SIGNING_NAME, root)
    if has_sgx_extension(signer):
        raise EndorsementMismatch(f"{what} is signed by a PCK certificate, expected {TCB_SIGNING_NAME}")
    return signer


def _trusted_root(
    signed: x509.Certificate, own_root: x509.Certificate, roots: Sequence[x509.Certificate], what: str
) -> x509.Certificate:
    root = find_root(signed, roots)
    if spki(own_root) != spki(root):
        raise UntrustedRoot(f"{what}: the root that it brings is not the one that signed it")
    if not is_issued_by(own_root, own_root):
        raise BadSignature(f"{what}: the root's signature over itself is not valid")
    return root


def _expect_authority(certificate: x509.Certificate, names: tuple[str, ...]) -> None:
    if common_name(certificate) not in names or not _is_authority(certificate):
        raise EndorsementMismatch(
            f"certificate chain has {common_name(certificate)!r}, expected the CA {' or '.join(names)}"
        )


def _expect_leaf(certificate: x509.Certificate, name: str, issuer: x509.Certificate) -> None:
    if common_name(certificate) != name or _is_authority(certificate):
        raise EndorsementMismatch(
            f"certificate chain begins with {common_name(certificate)!r}, expected {name!r}"
        )
    if not is_issued_by(certificate, issuer):
        raise BadSignature(f"{name} is not signed by {common_name(issuer)}")


def common_name(certificate: x509.Certificate) -> str:
    """The subject's one common name; empty if it has none or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _parse_pem(pem: bytes, count: int, what: str) -> list[x509.Certificate]:
    """Exactly ``count`` certificates with P-256 keys, in canonical PEM.

    The PEM of a quote is not signed. Canonical form leaves no byte in it that could be changed unnoticed;
    only line ends, and the zero bytes with which some platforms end it, may vary.
    """
    if len(pem) > MAX_CHAIN_BYTES:
        raise MalformedInput(f"{what} has {len(pem)} bytes, at most {MAX_CHAIN_BYTES} are read")
    text = pem.rstrip(b"\x00").replace(b"\r\n", b"\n").strip(b"\n")
    try:
        certificates = x509.load_pem_x509_certificates(text)
        canonical = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
        keys = [certificate.public_key() for certificate in certificates]
        for certificate in certificates:
            _ = (
                certificate.extensions,
                certificate.subject,
                certificate.issuer,
                certificate.not_valid_after_utc,
            )
    except UNREADABLE as error:
        raise MalformedInput(f"{what} is not a chain of certificates in PEM") from error
    if len(certificates) != count:
        raise MalformedInput(f"{what} has {len(certificates)} certificates, expected {count}")
    if canonical.strip(b"\n") != text:
        raise MalformedInput(f"{what} is not in canonical PEM")
    for certificate in certificates:
        check_signature_form(certificate.public_bytes(Encoding.DER), what)
    if not all(isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" for key in keys):
        raise MalformedInput(f"{what} has a key that is not P-256")
    return certificates

"""The certificate chain of a report: ARK -> ASK -> VCEK, or ARK -> ASVK -> VLEK, and the ARK's CRL.

Signatures, names and extensions are checked here, once per chain; dates and revocation where the time is
known. The root's own dates do not matter: its key is what is trusted.

Source: AMD 57230 (VCEK Certificate and KDS Interface) revision 1.00, chapters 2 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import SignatureAlgorithmOID

from cloister.attest.der import check_signature_form
from cloister.attest.snp.certificate import (
    Certificate,
    common_name,
    is_authority,
    load_certificate,
    spki,
    verify_issued_by,
    verify_pss,
)
from cloister.attest.snp.extensions import KeyExtensions, parse_extensions
from cloister.attest.snp.roots import (
    AMD_REVOKED,
    amd_authority,
    amd_roots,
    authority_name,
    is_amd_root,
    root_name,
)
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import (
    BadSignature,
    EndorsementMismatch,
    MalformedInput,
    Revoked,
    StaleEvidence,
    UntrustedRoot,
)

MAX_CRL_BYTES = 256 * 1024
Window = tuple[str, datetime, datetime]
"""What it is of, not before, not after."""


@dataclass(frozen=True, slots=True)
class KeyChain:
    """A chain whose signatures hold, and what the endorsement key's certificate says."""

    key: ec.EllipticCurvePublicKey
    extensions: KeyExtensions
    authority: Certificate
    root: x509.Certificate
    windows: tuple[Window, ...]
    simulated: bool
    """Whether the chain ends in another root than AMD's."""


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL whose signature holds."""

    issued: datetime
    expires: datetime
    serials: frozenset[int]


@lru_cache(maxsize=128)
def open_chain(
    key_der: bytes,
    authority_der: bytes | None,
    root_der: bytes | None,
    roots: tuple[x509.Certificate, ...] | None,
) -> KeyChain:
    """The chain of an endorsement key, verified up to one of ``roots``.

    Args:
        key_der: the VCEK or VLEK certificate.
        authority_der: the ASK or ASVK certificate; None stands for AMD's own.
        root_der: the root that came with them, if one did: it must be the trusted one.
        roots: None means AMD's.
    Raises:
        MalformedInput: a certificate that cannot be read.
        UntrustedRoot, BadSignature, EndorsementMismatch, Revoked: the chain does not hold.
    """
    certificate = load_certificate(key_der, "endorsement key certificate")
    extensions = parse_extensions(certificate)
    authority = _authority(authority_der, extensions)
    root = _trusted_root(authority, amd_roots() if roots is None else roots, extensions.product)
    if root_der is not None and load_certificate(root_der, "ARK certificate").public_key_bytes() != spki(
        root
    ):
        raise UntrustedRoot("the ARK certificate that came with the chain is not the one that signed it")
    simulated = not is_amd_root(root)
    if not simulated and (extensions.product, authority.serial) in AMD_REVOKED:
        raise Revoked(f"AMD has revoked {authority.name} with serial number {authority.serial:#x}")
    what = extensions.kind.upper()
    verify_issued_by(certificate, authority.parsed, f"{what} certificate")
    key = certificate.parsed.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise MalformedInput(f"{what} certificate has a key that is not P-384")
    if is_authority(certificate.parsed):
        raise EndorsementMismatch(f"{what} certificate is one of an authority")
    windows = tuple(
        (f"{item.name} certificate", item.not_before, item.not_after) for item in (certificate, authority)
    )
    return KeyChain(key, extensions, authority, root, windows, simulated)


@lru_cache(maxsize=32)
def open_crl(der: bytes, root: x509.Certificate) -> RevocationList:
    """A CRL, verified to be signed by ``root``.

    Raises:
        MalformedInput: not a CRL, or one without the date of the next.
        EndorsementMismatch, BadSignature: it is another authority's.
    """
    if len(der) > MAX_CRL_BYTES:
        raise MalformedInput(f"CRL has {len(der)} bytes, at most {MAX_CRL_BYTES} are read")
    check_signature_form(der, "CRL")
    try:
        crl = x509.load_der_x509_crl(der)
        canonical = crl.public_bytes(Encoding.DER) == der
        serials = frozenset(entry.serial_number for entry in crl)
        issuer, issued, expires = crl.issuer, crl.last_update_utc, crl.next_update_utc
        signature, signed, algorithm = crl.signature, crl.tbs_certlist_bytes, crl.signature_algorithm_oid
        _ = crl.extensions
    except UNREADABLE as error:
        raise MalformedInput("CRL is not readable") from error
    if not canonical or expires is None or algorithm != SignatureAlgorithmOID.RSASSA_PSS:
        raise MalformedInput("CRL is not one of AMD's form")
    if issuer != root.subject:
        raise EndorsementMismatch(
            f"CRL is of {issuer.rfc4514_string()!r}, expected {root.subject.rfc4514_string()!r}"
        )
    verify_pss(root, signature, signed, "CRL")
    return RevocationList(issued, expires, serials)


def check_validity(windows: Sequence[Window], now: datetime) -> None:
    """Establish that ``now`` lies in every window; StaleEvidence says in which it does not."""
    for what, begin, end in windows:
        if not begin <= now <= end:
            raise StaleEvidence(
                f"{what} is valid from {begin.isoformat()} to {end.isoformat()}, not at {now.isoformat()}"
            )


def check_revocation(chain: KeyChain, crl: RevocationList) -> None:
    """Establish that neither the root nor the authority of a chain is revoked.

    The endorsement key itself cannot be: AMD gives all of them the serial number zero, and puts those of
    its authorities only on the list.
    """
    if chain.authority.serial in crl.serials or chain.root.serial_number in crl.serials:
        raise Revoked(f"{chain.authority.name} with serial number {chain.authority.serial:#x} is revoked")


def _authority(der: bytes | None, extensions: KeyExtensions) -> Certificate:
    name = authority_name(extensions.product, extensions.kind)
    if der is None:
        der = amd_authority(extensions.product, extensions.kind).public_bytes(Encoding.DER)
    authority = load_certificate(der, f"{name} certificate")
    if authority.name != name or not is_authority(authority.parsed):
        raise EndorsementMismatch(
            f"the {extensions.kind.upper()} of {extensions.product} was given the authority"
            f" {authority.name!r}, expected the CA {name!r}"
        )
    return authority


def _trusted_root(
    authority: Certificate, roots: Sequence[x509.Certificate], product: str
) -> x509.Certificate:
    name = root_name(product)
    for root in roots:
        if common_name(root) != name:
            continue
        try:
            verify_issued_by(authority, root, authority.name)
        except BadSignature:
            continue
        return root
    raise UntrustedRoot(
        f"certificate chain does not end in a trusted root: none of {len(roots)} trusted roots is an {name}"
        f" that signed {authority.name}",
        hint="a simulated platform's root must be trusted explicitly",
    )

"""The XML signature of a reference integrity manifest: one profile of XML-DSIG, and nothing more general.

====================== =====================================================================================
element                accepted
====================== =====================================================================================
Signature              exactly one in the document, a child of its root
CanonicalizationMethod Canonical XML 1.1 or 1.0, without comments
SignatureMethod        ECDSA with SHA-384
Reference              one, of the whole document (``URI=""``)
Transforms             enveloped signature, then canonicalization
DigestMethod           SHA-384
KeyInfo                X.509 certificates, the signer's first
====================== =====================================================================================

The signature covers the whole document but itself, and the caller reads the very tree that was verified:
there is no second place from which an attacker's data could be read.

Source: XML Signature Syntax and Processing 1.1 (W3C, 2013), sections 3.2 and 4; RFC 9231, section 2.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest.nvidia.xml import Element, canonicalize
from cloister.attest.p384 import verify_raw
from cloister.errors import BadSignature, MalformedInput

DSIG = "http://www.w3.org/2000/09/xmldsig#"
CANONICAL = ("http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315")
ENVELOPED = DSIG + "enveloped-signature"
ECDSA_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"


@dataclass(frozen=True, slots=True)
class XmlSignature:
    """A signature of which the reference's digest has been checked, and the signature value not yet."""

    certificates: tuple[bytes, ...]
    """DER, the signer's first; not verified."""
    signed: bytes
    """Canonical SignedInfo."""
    value: bytes

    def verify(self, key: ec.EllipticCurvePublicKey, what: str) -> None:
        """Establish that ``key`` signed the document.

        Raises:
            BadSignature: it did not.
        """
        verify_raw(key, self.value, self.signed, what)


def open_signature(root: Element, what: str) -> XmlSignature:
    """The signature of a document, whose digest is that of the document.

    Raises:
        MalformedInput: no signature, several, or one of another profile.
        BadSignature: the document is not the one that was signed.
    """
    signatures = [element for element in root.walk() if element.qualified == (DSIG, "Signature")]
    if len(signatures) != 1 or signatures[0] not in root.elements():
        raise MalformedInput(f"{what} has not exactly one signature, in its root element")
    signature = signatures[0]
    info, value, key_info = _members(signature, ("SignedInfo", "SignatureValue", "KeyInfo"), what)
    canonicalization, method, reference = _members(
        info, ("CanonicalizationMethod", "SignatureMethod", "Reference"), what
    )
    _expect_algorithm(canonicalization, CANONICAL, what)
    _expect_algorithm(method, (ECDSA_SHA384,), what)
    if reference.attribute("URI") != "":
        raise MalformedInput(f"{what}: the signature is not of the whole document")
    transforms, digest_method, digest = _members(
        reference, ("Transforms", "DigestMethod", "DigestValue"), what
    )
    enveloped, canonical = _members(transforms, ("Transform", "Transform"), what)
    _expect_algorithm(enveloped, (ENVELOPED,), what)
    _expect_algorithm(canonical, CANONICAL, what)
    _expect_algorithm(digest_method, (SHA384,), what)
    found = hashlib.sha384(canonicalize(root, without=signature)).digest()
    if not hmac.compare_digest(found, _base64(digest, what)):
        raise BadSignature(f"{what} is not the document that was signed")
    (data,) = _members(key_info, ("X509Data",), what)
    certificates = tuple(
        _base64(item, what) for item in data.elements() if item.qualified == (DSIG, "X509Certificate")
    )
    return XmlSignature(certificates, canonicalize(info), _base64(value, what))


def _members(element: Element, names: tuple[str, ...], what: str) -> list[Element]:
    """The child elements, which must be exactly these, with nothing but white space between them."""
    stray = any(isinstance(child, str) and child.strip() for child in element.children)
    if stray or [child.qualified for child in element.elements()] != [(DSIG, name) for name in names]:
        raise MalformedInput(f"{what}: {element.name[:40]!r} does not consist of {', '.join(names)}")
    return element.elements()


def _expect_algorithm(element: Element, accepted: tuple[str, ...], what: str) -> None:
    found = element.attribute("Algorithm")
    if found not in accepted or element.children:
        raise MalformedInput(f"{what}: algorithm {str(found)[:60]!r} is not accepted, {accepted[0]!r} is")


def _base64(element: Element, what: str) -> bytes:
    try:
        return base64.b64decode("".join(element.text().split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise MalformedInput(f"{what}: {element.name[:40]!r} is not base64") from error

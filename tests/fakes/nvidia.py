"""An NVIDIA for tests: device chains, SPDM reports, manifests and OCSP responses under its own root."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.attest.nvidia.endorsements import NvidiaEndorsements
from cloister.attest.nvidia.xml import canonicalize, parse_xml
from cloister.attest.p384 import spki
from tests.fakes.p384_pki import Holder, issue

NONCE = bytes(range(32))
FWID = b"\x0f" * 48
DRIVER, VBIOS = "999.10", "99.00.12.00.01"
GOLDEN_DRIVER = {2: b"\x02" * 48, 4: b"\x04" * 48}
GOLDEN_VBIOS = {7: b"\x07" * 48}
MEASUREMENTS = {index: bytes([index]) * 48 for index in range(1, 9)}
OPAQUE = {
    3: DRIVER.encode() + b"\0",
    6: bytes.fromhex("0012009901000000"),
    20: FWID,
    11: b"\x55",
    36: b"\0\0",
}


def der(tag: int, *content: bytes) -> bytes:
    """One DER element of at most 255 bytes."""
    body = b"".join(content)
    length = bytes([len(body)]) if len(body) < 128 else bytes([0x81, len(body)])
    return bytes([tag]) + length + body


def composite_device_id(device: Holder, fwid: bytes = FWID) -> x509.UnrecognizedExtension:
    """The extension by which a leaf certificate states its device and firmware."""
    sha384 = bytes.fromhex("0609608648016503040202")
    value = der(0x30, b"\x02\x01\x01", spki(device.certificate), der(0x30, sha384, der(4, fwid)))
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), value)


class FakeNvidia:
    """One vendor; ``gpu`` makes devices of it."""

    def __init__(self) -> None:
        self.root_holder = issue("Fake Device Identity CA")
        self.identity = issue("Fake GH100 Identity", self.root_holder)
        rim_authority = issue("Fake Reference Value CA", self.root_holder)
        self.rim_chain = (
            issue("Fake RIM Signer", rim_authority, authority=False),
            rim_authority,
            self.root_holder,
        )

    @property
    def root(self) -> x509.Certificate:
        """What a relying party must choose to trust."""
        return self.root_holder.certificate

    def gpu(self, name: str = "GH100 A01 FAKE BROM", *, fwid: bytes = FWID) -> FakeGpu:
        """A new device."""
        return FakeGpu(self, name, fwid)

    def rim(
        self, version: str, golden: Mapping[int, bytes], chain: tuple[Holder, ...] | None = None
    ) -> bytes:
        """A signed manifest; ``golden`` is by SPDM index, and written one lower."""
        chain = chain or self.rim_chain
        resources = "".join(
            f'<n:Resource type="Measurement" index="{index - 1}" active="True" alternatives="1"'
            f' h:Hash0="{value.hex()}" size="48"/>'
            for index, value in golden.items()
        )
        begin = (
            '<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'
            ' xmlns:n="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'
            ' xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384" name="fake">\n'
            f'<n:Meta product="GH100" colloquialVersion="{version}"/><n:Payload>{resources}</n:Payload>'
        )
        return sign_xml(begin, "</SoftwareIdentity>", chain)

    def ocsp(
        self,
        subject: Holder,
        issuer: Holder,
        begin: datetime,
        *,
        revoked: bool = False,
        responder: Holder | None = None,
    ) -> bytes:
        """A response on one certificate, signed by its issuer or a responder, for one day."""
        signer = responder or issuer
        builder = ocsp.OCSPResponseBuilder().add_response(
            cert=subject.certificate,
            issuer=issuer.certificate,
            algorithm=hashes.SHA384(),
            cert_status=ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            this_update=begin,
            next_update=begin + timedelta(days=1),
            revocation_time=begin if revoked else None,
            revocation_reason=None,
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
        if responder:
            builder = builder.certificates([responder.certificate])
        response = builder.sign(signer.key, hashes.SHA384())
        return response.public_bytes(Encoding.DER)

    def responder(self, issuer: Holder, *, appointed: bool = True) -> Holder:
        """A certificate for signing OCSP responses in ``issuer``'s name."""
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
        extensions = ((usage, True),) if appointed else ()
        return issue("Fake OCSP Responder", issuer, authority=False, extensions=extensions)


class FakeGpu:
    """One device: its own key, its certificates, its reports."""

    def __init__(self, vendor: FakeNvidia, name: str, fwid: bytes) -> None:
        self.vendor = vendor
        self.device = issue(name, vendor.identity)
        statement = composite_device_id(self.device, fwid)
        self.leaf = issue("FAKE FMC LF", self.device, authority=False, extensions=((statement, False),))
        self.chain = (self.leaf, self.device, vendor.identity, vendor.root_holder)

    def report(
        self,
        nonce: bytes = NONCE,
        *,
        measurements: Mapping[int, bytes] = MEASUREMENTS,
        opaque: Mapping[int, bytes] = OPAQUE,
        slot: int = 0,
    ) -> bytes:
        """A signed report."""
        blocks = b"".join(
            struct.pack("<BBHBH", index, 1, len(value) + 3, 1, len(value)) + value
            for index, value in measurements.items()
        )
        fields = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in opaque.items())
        signed = b"".join(
            (
                bytes.fromhex("11e001ff") + nonce + bytes([slot]),
                bytes.fromhex("11600000") + bytes([len(measurements)]) + len(blocks).to_bytes(3, "little"),
                blocks + hashlib.sha256(nonce).digest(),
                len(fields).to_bytes(2, "little") + fields,
            )
        )
        return signed + self.leaf.sign(signed)

    def endorsements(self, now: datetime | None = None, **changes: object) -> NvidiaEndorsements:
        """Everything that a verifier needs; with OCSP responses if ``now`` is given."""
        members: dict[str, object] = {
            "certificate_chain": tuple(holder.der for holder in self.chain),
            "driver_rim": self.vendor.rim(DRIVER, GOLDEN_DRIVER),
            "vbios_rim": self.vendor.rim(VBIOS, GOLDEN_VBIOS),
            "ocsp": self.ocsp(now) if now else (),
        }
        return NvidiaEndorsements(**{**members, **changes})  # type: ignore[arg-type]

    def ocsp(self, now: datetime, *, revoked: Holder | None = None) -> tuple[bytes, ...]:
        """Responses on all certificates of the device and of the manifests, less the leaf."""
        pairs = [
            *zip(self.chain[1:], self.chain[2:], strict=False),
            *zip(self.vendor.rim_chain, self.vendor.rim_chain[1:], strict=False),
        ]
        begin = now - timedelta(hours=1)
        return tuple(
            self.vendor.ocsp(subject, issuer, begin, revoked=subject is revoked) for subject, issuer in pairs
        )


def sign_xml(begin: str, end: str, chain: tuple[Holder, ...]) -> bytes:
    """A document with an enveloped signature, in the profile of NVIDIA's manifests."""
    digest = hashlib.sha384(canonicalize(parse_xml((begin + end).encode(), "fake"))).digest()
    c14n = "http://www.w3.org/2006/12/xml-c14n11"
    dsig = "http://www.w3.org/2000/09/xmldsig#"
    info = (
        f'<ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{c14n}"/>'
        '<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/>'
        f'<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="{dsig}enveloped-signature"/>'
        f'<ds:Transform Algorithm="{c14n}"/></ds:Transforms>'
        '<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"/>'
        f"<ds:DigestValue>{base64.b64encode(digest).decode()}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )
    certificates = "".join(
        f"<ds:X509Certificate>{base64.b64encode(holder.der).decode()}</ds:X509Certificate>"
        for holder in chain
    )

    def document(value: str) -> bytes:
        return (
            f'{begin}<ds:Signature xmlns:ds="{dsig}">{info}<ds:SignatureValue>{value}</ds:SignatureValue>'
            f"<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>{end}"
        ).encode()

    signature = parse_xml(document(""), "fake").find(dsig, "Signature")
    signed = canonicalize(signature.find(dsig, "SignedInfo"))
    return document(base64.b64encode(chain[0].sign(signed)).decode())

"""Certificate chains and CRLs of DCAP, damaged in every way."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.attest.dcap import DcapEndorsements
from cloister.attest.dcap.chain import open_pck_chain
from cloister.attest.dcap.collateral import open_collateral
from cloister.attest.dcap.quote import parse_quote
from cloister.attest.dcap.roots import intel_roots
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.simulated.pki import make_pck, make_platform_ca, make_root
from cloister.errors import (
    BadSignature,
    EndorsementMismatch,
    MalformedInput,
    UntrustedRoot,
    VerificationError,
)
from tests.attest.conftest import NOW

DECLARED = (MalformedInput, VerificationError)
_FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def pem(*certificates: x509.Certificate) -> bytes:
    """A chain."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def pem_of(der: bytes) -> bytes:
    """Any bytes as a certificate in canonical PEM."""
    text = base64.b64encode(der)
    lines = [text[begin : begin + 64] for begin in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


@pytest.fixture(scope="module")
def chain(quote: bytes) -> bytes:
    """The PCK chain of a good quote."""
    return parse_quote(quote).pck_chain


def test_good_chain(chain: bytes, platform: SimulatedPlatform) -> None:
    """The chain opens under its root; zero bytes and line ends after it do not matter."""
    for text in (chain, chain + b"\x00", chain.replace(b"\n", b"\r\n")):
        assert open_pck_chain(text, (platform.root,)).extension.pce_svn == 13


@pytest.mark.parametrize("change", [b" ", b"x\n", b"-----BEGIN CERTIFICATE-----\n"])
def test_text_around_the_chain(chain: bytes, platform: SimulatedPlatform, change: bytes) -> None:
    """Nothing else may stand before or behind the certificates."""
    for text in (change + chain, chain + change):
        with pytest.raises(MalformedInput):
            open_pck_chain(text, (platform.root,))


def test_number_of_certificates(chain: bytes, platform: SimulatedPlatform) -> None:
    """A chain has exactly three certificates, in their order."""
    pck, authority, root = x509.load_pem_x509_certificates(chain)
    for certificates in ((pck,), (pck, authority), (pck, authority, root, root), ()):
        with pytest.raises(MalformedInput):
            open_pck_chain(pem(*certificates), (platform.root,))
    with pytest.raises(DECLARED):
        open_pck_chain(pem(authority, pck, root), (platform.root,))


def test_foreign_parts(chain: bytes, platform: SimulatedPlatform) -> None:
    """A leaf of another CA, a CA of another root, and a root put beside the real one are refused."""
    pck, authority, root = x509.load_pem_x509_certificates(chain)
    other_root = make_root(NOW)
    other_authority = make_platform_ca(other_root, NOW)
    other_pck = make_pck(other_authority, platform.issuer.tcb, NOW).certificate
    roots = (platform.root,)
    with pytest.raises(BadSignature):
        open_pck_chain(pem(other_pck, authority, root), roots)
    with pytest.raises(UntrustedRoot):
        open_pck_chain(pem(pck, other_authority.certificate, root), roots)
    with pytest.raises(UntrustedRoot):
        open_pck_chain(pem(pck, authority, other_root.certificate), roots)
    with pytest.raises(UntrustedRoot):
        open_pck_chain(chain, intel_roots())


def test_wrong_roles(chain: bytes, platform: SimulatedPlatform) -> None:
    """A TCB signing certificate is no CA, and a CA is no PCK certificate."""
    _, authority, root = x509.load_pem_x509_certificates(chain)
    signing = platform.issuer.tcb_signing.certificate
    with pytest.raises(EndorsementMismatch):
        open_pck_chain(pem(authority, authority, root), (platform.root,))
    with pytest.raises(EndorsementMismatch):
        open_pck_chain(pem(signing, signing, root), (platform.root,))


@_FUZZ
@given(which=st.integers(0, 2), offset=st.integers(0, 900), value=st.binary(min_size=1, max_size=6))
def test_damaged_certificates(
    chain: bytes, platform: SimulatedPlatform, which: int, offset: int, value: bytes
) -> None:
    """Damage inside any certificate's DER raises only declared errors."""
    ders = [item.public_bytes(Encoding.DER) for item in x509.load_pem_x509_certificates(chain)]
    der = bytearray(ders[which])
    der[offset : offset + len(value)] = value
    if bytes(der) == ders[which]:
        return
    ders[which] = bytes(der)
    with pytest.raises(DECLARED):
        open_pck_chain(b"".join(pem_of(item) for item in ders), (platform.root,))


@_FUZZ
@given(
    member=st.sampled_from(["root_ca_crl", "pck_crl"]),
    offset=st.integers(0, 500),
    value=st.binary(min_size=1, max_size=6),
)
def test_damaged_crls(
    endorsements: DcapEndorsements, platform: SimulatedPlatform, member: str, offset: int, value: bytes
) -> None:
    """Damage inside a CRL raises only declared errors."""
    der = bytearray(getattr(endorsements, member))
    der[offset : offset + len(value)] = value
    if bytes(der) == getattr(endorsements, member):
        return
    with pytest.raises(DECLARED):
        open_collateral(replace(endorsements, **{member: bytes(der)}), platform.root)


@given(st.binary(max_size=300))
def test_random_certificates(raw: bytes) -> None:
    """Random bytes, and random bytes dressed as certificates, are malformed."""
    for text in (raw, pem_of(raw) * 3):
        with pytest.raises(MalformedInput):
            open_pck_chain(text, intel_roots())

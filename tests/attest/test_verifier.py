"""The table of schemes."""

from __future__ import annotations

from datetime import datetime

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.dcap import DcapEndorsements
from cloister.attest.dcap.roots import INTEL_ROOT_SPKI_SHA256, is_intel_root
from cloister.attest.model import Claims
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.verifier import SCHEMES, parse_endorsements, vendor_roots, verify_evidence
from cloister.errors import ConfigError, MalformedInput
from tests.attest.conftest import NOW
from tests.vectors import vector


def test_rows_are_complete() -> None:
    """Each row has its own name, claims of its own, and rules whose names are unique."""
    for name, scheme in SCHEMES.items():
        assert scheme.name == name
        assert issubclass(scheme.claims, Claims)
        names = [rule.name for rule in scheme.rules]
        assert len(names) == len(set(names))


def test_unknown_scheme() -> None:
    """An unknown scheme is malformed input, named in the error together with the known ones."""
    with pytest.raises(MalformedInput, match="tdx"):
        verify_evidence("sample", b"", None, NOW)
    with pytest.raises(MalformedInput, match="sample"):
        parse_endorsements("sample", {})


def test_naive_time() -> None:
    """A time without a zone is a mistake of the caller."""
    with pytest.raises(ConfigError, match="aware"):
        verify_evidence("tdx", b"", None, datetime(2026, 1, 1))


@pytest.mark.parametrize("scheme", ["tdx", "sgx"])
def test_vendor_roots_are_pinned(scheme: str) -> None:
    """Intel's root is the one with the pinned key."""
    assert all(is_intel_root(root) for root in vendor_roots(scheme))
    assert len(INTEL_ROOT_SPKI_SHA256) == 64


@pytest.mark.parametrize("dates", ["2018_2033", "2018_2049"])
def test_intel_root_is_pinned_by_key(dates: str) -> None:
    """Both certificates of Intel's root, which differ in their expiry, are recognized by their one key."""
    pem = vector(f"dcap-collateral/certs/intel_sgx_root_ca_{dates}.pem").read_bytes()
    assert is_intel_root(x509.load_pem_x509_certificate(pem))


def test_other_certificates_are_not_the_root() -> None:
    """Intel's other certificates are no roots."""
    pem = vector("dcap-collateral/certs/intel_pck_platform_ca.pem").read_bytes()
    assert not is_intel_root(x509.load_pem_x509_certificate(pem))


@given(scheme=st.sampled_from(list(SCHEMES)), raw=st.binary(max_size=400))
def test_random_evidence(scheme: str, raw: bytes) -> None:
    """Random bytes raise MalformedInput for every scheme."""
    with pytest.raises(MalformedInput):
        verify_evidence(scheme, raw, None, NOW)


def test_endorsements_may_be_given_as_json(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements
) -> None:
    """A mapping in the vendor's JSON form does as well as the class that reads it."""
    mapping = endorsements.to_mapping()
    given = verify_evidence("tdx", quote, mapping, NOW, roots=[platform.root])
    assert given == verify_evidence("tdx", quote, endorsements, NOW, roots=[platform.root])
    with pytest.raises(MalformedInput):
        verify_evidence("tdx", quote, {"vcek": "00"}, NOW, roots=[platform.root])

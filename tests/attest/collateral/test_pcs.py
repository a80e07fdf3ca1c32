"""Intel's service: the questions, the answers, and what is wrong with some."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from urllib.parse import quote as percent_encode

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import verify_evidence
from cloister.attest.collateral import HttpFetcher, IntelPlatform, PcsSource, Wanted, get_endorsements
from cloister.attest.collateral.pcs import INTEL_ROOT_CRL, member_texts
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import BadSignature, ConfigError, TransportError
from tests.attest.collateral.conftest import FMSPC
from tests.attest.conftest import NOW
from tests.fakes.pcs import FakeVendors, serving
from tests.vectors import vector

CASES = (
    "sgx_v3_00606a000000_OutOfDate_07c203b5_eval21_2026-07-30.json",
    "sgx_v3_00906ed50000_SWHardeningNeeded_36dbad50_eval17_2025-05-27.json",
    "tdx_v4_00806f050000_UpToDate_341e069a_eval18_2026-01-27.json",
    "tdx_v5_90c06f000000_UpToDate_cf77a6e9_eval18_2026-03-16.json",
)
WANTED = Wanted("tdx", (IntelPlatform(scheme="tdx", fmspc=FMSPC, ca="platform"),))


def test_a_quote_is_verified_with_what_was_fetched(
    pcs: PcsSource, quote: bytes, platform: SimulatedPlatform, endorsements: DcapEndorsements
) -> None:
    """End to end over HTTP: ask for a quote's collateral, verify the quote with it."""
    found = get_endorsements("tdx", quote, (pcs,), NOW)
    assert found == endorsements
    assert verify_evidence("tdx", quote, found, NOW, roots=[platform.root]).tcb_status == "UpToDate"


@pytest.mark.parametrize("pccs", [False, True], ids=["pcs", "pccs"])
@pytest.mark.parametrize("name", CASES)
def test_genuine_collateral_survives_the_way(fetcher: HttpFetcher, name: str, pccs: bool) -> None:
    """Intel's own collateral, served as Intel or a PCCS does, verifies Intel's own quotes."""
    case = json.loads(vector(f"dcap-cases/dev/{name}").read_bytes())
    raw, scheme = vector(case["quote"]).read_bytes(), name[:3]
    known = DcapEndorsements.from_mapping(case["collateral"])
    now = datetime.fromtimestamp(case["verification_time"], UTC)
    ca = "platform" if "Platform" in _issuer(known.pck_crl_issuer_chain) else "processor"
    vendors = FakeVendors()
    vendors.add_intel(scheme, name.split("_")[2], ca, known, pccs=pccs)
    with serving(vendors):
        base = vendors.url + ("/sgx/certification/v4/" if pccs else "")
        found = get_endorsements(scheme, raw, (PcsSource(fetcher, base),), now)
    assert found == known
    assert verify_evidence(scheme, raw, found, now).tcb_status in name


def test_the_questions_are_those_of_the_api(pcs: PcsSource, vendors: FakeVendors) -> None:
    """Four requests, with Intel's paths and parameters."""
    pcs.find(WANTED, NOW)
    assert vendors.asked == [
        "/tdx/certification/v4/tcb?fmspc=90C06F000000&update=standard",
        "/tdx/certification/v4/qe/identity?update=standard",
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/sgx/certification/v4/rootcacrl",
    ]


def test_early_updates_are_asked_for(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """``early`` goes into the questions, and into the source's name, which the cache knows it by."""
    source = PcsSource(fetcher, vendors.url, update="early")
    with pytest.raises(TransportError):
        source.find(WANTED, NOW)
    assert vendors.asked == ["/tdx/certification/v4/tcb?fmspc=90C06F000000&update=early"]
    assert "early" in source.name


def test_the_roots_crl_has_its_own_place(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """Intel's service has no root CRL: it is at Intel's distribution point, or where the settings say."""
    assert PcsSource(fetcher)._root_crl == INTEL_ROOT_CRL
    moved = PcsSource(fetcher, vendors.url, root_crl_url=f"{vendors.url}/root.der")
    with pytest.raises(TransportError, match=r"root\.der"):
        moved.find(WANTED, NOW)


def test_a_platform_that_intel_does_not_know(pcs: PcsSource, vendors: FakeVendors) -> None:
    """404 for an FMSPC is an error that says so."""
    other = Wanted("tdx", (IntelPlatform(scheme="tdx", fmspc="00" * 6, ca="platform"),))
    with pytest.raises(TransportError, match="404"):
        pcs.find(other, NOW)


@pytest.mark.parametrize("part", ["tcb", "identity", "pckcrl", "rootcacrl"])
@pytest.mark.parametrize(
    "body",
    [b"", b"<html>maintenance</html>", b"{}", b'{"tcbInfo":1,"tcbInfo":2}', b"\x30\x82\x01", b"3082", b"\xff",
     b"[" * 100_000],
)  # fmt: skip
def test_wrong_content_is_refused(pcs: PcsSource, vendors: FakeVendors, part: str, body: bytes) -> None:
    """What has not the form of the API is an error of the service, in each of its parts."""
    vendors.break_path(part, body=body)
    with pytest.raises(TransportError):
        pcs.find(WANTED, NOW)


@pytest.mark.parametrize("part", ["tcb", "identity", "pckcrl"])
@pytest.mark.parametrize("chain", [None, "x", "%FF", "-----BEGIN CERTIFICATE-----"])
def test_wrong_issuer_chains_are_refused(
    pcs: PcsSource, vendors: FakeVendors, part: str, chain: str | None
) -> None:
    """A missing or unreadable issuer chain is an error of the service."""
    names = ("TCB-Info", "SGX-PCK-CRL", "SGX-Enclave-Identity")
    headers = {} if chain is None else {f"{name}-Issuer-Chain": chain for name in names}
    vendors.break_path(part, headers=headers)
    with pytest.raises(TransportError):
        pcs.find(WANTED, NOW)


def test_the_older_name_of_a_header_is_known(
    pcs: PcsSource, vendors: FakeVendors, endorsements: DcapEndorsements
) -> None:
    """The chain of TCB info had another name in earlier versions, which some PCCS still use."""
    chain = {"SGX-TCB-Info-Issuer-Chain": percent_encode(endorsements.tcb_info_issuer_chain)}
    vendors.break_path("/tcb", headers=chain)
    found = pcs.find(WANTED, NOW)
    assert found is not None
    assert found.endorsements == endorsements


def test_tcb_info_of_another_platform_is_refused(
    pcs: PcsSource, vendors: FakeVendors, endorsements: DcapEndorsements
) -> None:
    """An answer to another question is found before it gets into a cache."""
    other = endorsements.tcb_info.replace(FMSPC.upper(), "00" * 6)
    body = f'{{"tcbInfo":{other},"signature":"{endorsements.tcb_info_signature.hex()}"}}'
    vendors.break_path("/tcb", body=body.encode())
    with pytest.raises(TransportError, match="asked for"):
        pcs.find(WANTED, NOW)


def test_what_was_signed_is_cut_out_exactly(
    pcs: PcsSource, vendors: FakeVendors, endorsements: DcapEndorsements
) -> None:
    """Spaces around the signed text, and members in the other order, change nothing of it."""
    signature = endorsements.tcb_info_signature.hex().upper()
    body = f'\n{{ "signature" : "{signature}" ,\r\n\t"tcbInfo" : {endorsements.tcb_info} }}\n'
    vendors.break_path("/tcb", body=body.encode())
    found = pcs.find(WANTED, NOW)
    assert found is not None
    assert found.endorsements == endorsements


def test_changed_content_does_not_verify(
    pcs: PcsSource,
    vendors: FakeVendors,
    quote: bytes,
    platform: SimulatedPlatform,
    endorsements: DcapEndorsements,
) -> None:
    """What a service changes in signed content is found by verification, as it must be."""
    changed = endorsements.tcb_info.replace('"pcesvn":13', '"pcesvn":12')
    assert changed != endorsements.tcb_info
    body = f'{{"tcbInfo":{changed},"signature":"{endorsements.tcb_info_signature.hex()}"}}'
    vendors.break_path("/tcb", body=body.encode())
    found = get_endorsements("tdx", quote, (pcs,), NOW)
    with pytest.raises(BadSignature):
        verify_evidence("tdx", quote, found, NOW, roots=[platform.root])


def test_another_vendors_platform_is_not_asked_for(pcs: PcsSource, vendors: FakeVendors) -> None:
    """Intel's service is not asked for what is not Intel's."""
    assert pcs.find(Wanted("nitro", ()), NOW) is None
    assert vendors.asked == []


def test_plain_http_to_another_machine_is_refused(fetcher: HttpFetcher) -> None:
    """Which platforms somebody asks for stays between them and the vendor."""
    with pytest.raises(ConfigError, match="https"):
        PcsSource(fetcher, "http://pccs.example.com:8081")


TEXT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), TEXT, min_size=1, max_size=4), st.sampled_from([None, 1, "\t"]))
def test_members_are_cut_at_their_ends(document: dict[str, object], indent: int | str | None) -> None:
    """However JSON is laid out, each member's text is that member."""
    members = member_texts(json.dumps(document, indent=indent))
    assert {name: json.loads(text) for name, text in members.items()} == document


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_random_text_raises_nothing_else(text: str) -> None:
    """Whatever the text, only ValueError comes out."""
    with contextlib.suppress(ValueError):
        member_texts("{" + text)


def _issuer(pem: str) -> str:
    return x509.load_pem_x509_certificates(pem.encode())[0].subject.rfc4514_string()

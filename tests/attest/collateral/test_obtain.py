"""Which source is used, and what is said when none can be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cloister.attest import verify_evidence
from cloister.attest.collateral import (
    BundleSource,
    Entry,
    EvidenceSource,
    KdsSource,
    PcsSource,
    Source,
    Wanted,
    find_entry,
    get_endorsements,
    make_sources,
    parse_bundle,
    read_wanted,
    render_bundle,
)
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.simulated import SimulatedPlatform, SimulatedSnpPlatform
from cloister.attest.snp import SnpEndorsements
from cloister.errors import ConfigError, MalformedInput, StaleEvidence, TransportError
from cloister.settings import CollateralSettings, Settings, load_settings, measured_settings
from tests.attest.conftest import NOW
from tests.fakes.pcs import FakeVendors


def _bundle(platform: object, obtained: object, source: object, endorsements: object) -> bytes:
    entry = {"platform": platform, "obtained": obtained, "source": source, "endorsements": endorsements}
    return json.dumps({"bundle": 1, "entries": [entry]}).encode()


@dataclass
class Fixed:
    """A source that always does the same."""

    result: Entry | TransportError | None
    name: str = "fixed"

    def find(self, wanted: Wanted, now: datetime) -> Entry | None:
        """Return it, or raise it."""
        if isinstance(self.result, TransportError):
            raise self.result
        return self.result


@pytest.fixture
def entry(endorsements: DcapEndorsements, quote: bytes) -> Entry:
    """Good collateral of the simulated platform."""
    return Entry(read_wanted("tdx", quote).platforms[0].key, endorsements, NOW, "test")


def test_the_first_source_that_has_it_is_used(quote: bytes, entry: Entry) -> None:
    """Sources that fail, or have nothing, are passed over."""
    sources: tuple[Source, ...] = (Fixed(TransportError("down")), Fixed(None), Fixed(entry), Fixed(None))
    assert get_endorsements("tdx", quote, sources, NOW) == entry.endorsements


def test_expired_collateral_is_passed_over(quote: bytes, entry: Entry, platform: SimulatedPlatform) -> None:
    """What no longer holds is not used while another source has what does."""
    later = NOW + timedelta(days=366)
    fresh = Entry(entry.key, platform.endorsements(later), later, "fresh")
    assert get_endorsements("tdx", quote, (Fixed(entry), Fixed(fresh)), later) == fresh.endorsements
    with pytest.raises(StaleEvidence, match=r"fixed: TCB info expired at 2027-10-01.*; down"):
        get_endorsements("tdx", quote, (Fixed(entry), Fixed(TransportError("down"))), later)
    with pytest.raises(StaleEvidence, match="not valid before"):
        get_endorsements("tdx", quote, (Fixed(entry),), NOW - timedelta(days=1))


def test_every_reason_is_given(quote: bytes) -> None:
    """When nobody could be asked, the error says why for each."""
    sources = (Fixed(TransportError("one is down")), Fixed(TransportError("two is busy")))
    with pytest.raises(TransportError, match="one is down; two is busy"):
        get_endorsements("tdx", quote, sources, NOW)


def test_nothing_anywhere_is_a_matter_of_configuration(quote: bytes) -> None:
    """No source, and sources without an entry, say what to set."""
    with pytest.raises(ConfigError, match="no source is configured"):
        get_endorsements("tdx", quote, (), NOW)
    with pytest.raises(ConfigError, match="asked fixed"):
        get_endorsements("tdx", quote, (Fixed(None),), NOW)


def test_a_naive_time_is_refused(quote: bytes) -> None:
    """As everywhere, times have a zone."""
    with pytest.raises(ConfigError, match="naive"):
        get_endorsements("tdx", quote, (), NOW.replace(tzinfo=None))


def test_schemes_without_a_service_need_none() -> None:
    """Evidence that brings all that it needs gets None, and asks nobody."""
    assert get_endorsements("nitro", b"x", (Fixed(None),), NOW) is None
    with pytest.raises(MalformedInput):
        get_endorsements("unknown", b"x", (), NOW)


def test_what_the_evidence_brings(quote: bytes, endorsements: DcapEndorsements) -> None:
    """Endorsements beside the evidence are a source like any other; what is malformed is refused."""
    assert get_endorsements("tdx", quote, (EvidenceSource(endorsements.to_mapping()),), NOW) == endorsements
    with pytest.raises(MalformedInput):
        get_endorsements("tdx", quote, (EvidenceSource({"tcb_info": 1}),), NOW)
    with pytest.raises(ConfigError):
        get_endorsements("tdx", quote, (EvidenceSource(),), NOW)


def test_a_certificate_table_is_endorsement_enough(report: bytes, snp_platform: SimulatedSnpPlatform) -> None:
    """A report with its host's certificates verifies without asking anybody."""
    raw = report + snp_platform.certificate_table()
    found = get_endorsements("sev-snp", raw, (EvidenceSource(),), NOW)
    verify_evidence("sev-snp", raw, found, NOW, roots=[snp_platform.root])


def test_a_bundle_works_offline(
    pcs: PcsSource, kds: KdsSource, quote: bytes, report: bytes, platform: SimulatedPlatform, tmp_path: Path,
    snp_endorsements: SnpEndorsements,
) -> None:  # fmt: skip
    """Fetched here, written to one file, used elsewhere without a network, for both vendors."""
    entries = [
        find_entry(read_wanted(scheme, raw), (pcs, kds), NOW)
        for scheme, raw in (("tdx", quote), ("sev-snp", report))
    ]
    path = tmp_path / "bundle.json"
    path.write_bytes(render_bundle([*entries, entries[0]]))
    assert parse_bundle(path.read_bytes()) == tuple(entries)
    settings = CollateralSettings(sources=("bundle",), bundle=str(path))
    sources = make_sources(settings, {})
    found = get_endorsements("tdx", quote, sources, NOW)
    verify_evidence("tdx", quote, found, NOW, roots=[platform.root])
    assert get_endorsements("sev-snp", report, sources, NOW) == snp_endorsements


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"bundle": 2, "entries": []}',
        b'{"bundle": 1, "entries": {}}',
        b'{"bundle": 1, "entries": [1]}',
        b'{"bundle": 1, "entries": [], "more": 1}',
        _bundle({"scheme": "tdx"}, "x", "", {}),
        _bundle({"scheme": "unknown"}, "2026-10-01T12:00:00Z", "", {}),
        _bundle({"a": "b"}, "2026-10-01T12:00:00Z", "", {}),
        _bundle({"scheme": "sev-snp"}, "yesterday", "", {}),
        _bundle({"scheme": "sev-snp"}, 1, "", {}),
        _bundle({"scheme": "sev-snp"}, "2026-10-01T12:00:00Z", 1, {}),
        _bundle({"scheme": "sev-snp"}, "2026-10-01T12:00:00Z", "", []),
        _bundle([], "2026-10-01T12:00:00Z", "", {}),
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_bundle_is_malformed(raw: bytes) -> None:
    """A damaged bundle is an error, not an empty one."""
    with pytest.raises(MalformedInput):
        parse_bundle(raw)


def test_a_bundle_with_two_entries_of_one_platform_is_malformed(entry: Entry) -> None:
    """Nobody has to guess which of two is meant."""
    raw = render_bundle([entry])
    document = json.loads(raw)
    document["entries"] *= 2
    with pytest.raises(MalformedInput, match="two entries"):
        parse_bundle(json.dumps(document).encode())


def test_a_bundle_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """A bundle that was asked for must be there."""
    with pytest.raises(ConfigError, match="absent"):
        BundleSource.from_file(tmp_path / "absent.json")


def test_settings_give_the_order(vendors: FakeVendors, tmp_path: Path, quote: bytes, entry: Entry) -> None:
    """Default order: bundle, vendors behind the cache, evidence; the settings may choose another."""
    bundle = tmp_path / "bundle.json"
    bundle.write_bytes(render_bundle([entry]))
    settings = load_settings(
        environ={
            "CLOISTER_COLLATERAL_BUNDLE": str(bundle),
            "CLOISTER_COLLATERAL_PCS_URL": vendors.url,
            "CLOISTER_COLLATERAL_KDS_URL": vendors.url,
        }
    ).collateral
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    names = [source.name.split()[0] for source in make_sources(settings, environ)]
    assert names == ["bundle", "Intel", "AMD", "the"]
    vendor_only = load_settings(
        environ={
            "CLOISTER_COLLATERAL_SOURCES": "vendor",
            "CLOISTER_COLLATERAL_PCS_URL": vendors.url,
        }
    ).collateral
    assert get_endorsements("tdx", quote, make_sources(vendor_only, environ), NOW) == entry.endorsements
    assert list((tmp_path / "cloister" / "collateral").iterdir())
    with pytest.raises(ConfigError):
        load_settings(flags={"collateral.sources": ["internet"]})


def test_what_a_verifier_fetches_is_no_part_of_what_a_server_proves() -> None:
    """Where collateral comes from changes nothing that is measured: it is verified wherever it is from."""
    changed = load_settings(flags={"collateral.pcs_url": "https://pccs.example.com"})
    assert measured_settings(changed) == measured_settings(Settings())


def test_age_zero_turns_the_cache_off(vendors: FakeVendors, tmp_path: Path, quote: bytes) -> None:
    """Without a cache nothing is written, and no folder for it is needed."""
    settings = CollateralSettings(sources=("vendor",), pcs_url=vendors.url, max_age_s=0)
    get_endorsements("tdx", quote, make_sources(settings, {}), NOW)
    assert list(tmp_path.iterdir()) == []

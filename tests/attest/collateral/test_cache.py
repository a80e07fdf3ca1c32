"""The cache: what it remembers, how long, and that damage to it does no harm."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from cloister.attest import verify_evidence
from cloister.attest.collateral import (
    CacheSource,
    Entry,
    HttpFetcher,
    IntelPlatform,
    PcsSource,
    Wanted,
    get_endorsements,
)
from cloister.attest.collateral import cache as cache_module
from cloister.attest.collateral.cache import default_cache, list_cached
from cloister.attest.collateral.entry import parse_entry
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import ConfigError, TransportError
from tests.attest.collateral.conftest import FMSPC
from tests.attest.conftest import NOW
from tests.fakes.pcs import FakeVendors

WANTED = Wanted("tdx", (IntelPlatform(scheme="tdx", fmspc=FMSPC, ca="platform"),))
HOUR = timedelta(hours=1)


@pytest.fixture
def cached(pcs: PcsSource, tmp_path: Path) -> CacheSource:
    """The fake service behind a cache of one hour."""
    return CacheSource(pcs, tmp_path / "cache", max_age_s=3600)


def find(source: CacheSource, hours: float = 0) -> Entry:
    entry = source.find(WANTED, NOW + hours * HOUR)
    assert entry is not None
    return entry


def only_file(folder: Path) -> Path:
    (path,) = (folder / "cache").iterdir()
    return path


def test_the_second_time_nobody_is_asked(
    cached: CacheSource, vendors: FakeVendors, quote: bytes, platform: SimulatedPlatform
) -> None:
    """What was found is used again, and verifies as before."""
    first = find(cached)
    asked = len(vendors.asked)
    assert find(cached, 0.9) == first
    assert len(vendors.asked) == asked
    found = get_endorsements("tdx", quote, (cached,), NOW)
    verify_evidence("tdx", quote, found, NOW, roots=[platform.root])


@pytest.mark.parametrize("hours", [1.1, -0.1])
def test_what_is_too_old_or_from_the_future_is_asked_for_again(
    cached: CacheSource, vendors: FakeVendors, hours: float
) -> None:
    """The maximum age is kept; an entry from the future has no age."""
    find(cached)
    asked = len(vendors.asked)
    assert find(cached, hours).obtained == NOW + hours * HOUR
    assert len(vendors.asked) == 2 * asked


def test_a_stale_entry_does_not_stand_in_for_a_service_that_is_down(
    cached: CacheSource, vendors: FakeVendors
) -> None:
    """Who keeps a revocation away cannot do so for longer than the maximum age."""
    find(cached)
    vendors.break_path("/", status=500)
    find(cached, 0.5)
    with pytest.raises(TransportError):
        cached.find(WANTED, NOW + 2 * HOUR)


def test_expired_collateral_is_asked_for_again(
    pcs: PcsSource, vendors: FakeVendors, tmp_path: Path, platform: SimulatedPlatform
) -> None:
    """Within the maximum age too, what no longer holds is replaced."""
    cached = CacheSource(pcs, tmp_path / "cache", max_age_s=10 * 365 * 86400)
    find(cached)
    later = NOW + timedelta(days=366)
    fresh = platform.endorsements(later)
    vendors.add_intel("tdx", FMSPC, "platform", fresh)
    found = cached.find(WANTED, later)
    assert found is not None
    assert found.endorsements == fresh


@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"\xff" * 100, b"0" * 64 + b"\n{}"])
def test_a_damaged_file_is_absent(
    cached: CacheSource, vendors: FakeVendors, tmp_path: Path, content: bytes
) -> None:
    """A file that is no entry is replaced by a good one."""
    first = find(cached)
    only_file(tmp_path).write_bytes(content)
    assert find(cached) == first
    assert list(list_cached(tmp_path / "cache")) == [first]


def test_a_flipped_bit_is_found(cached: CacheSource, vendors: FakeVendors, tmp_path: Path) -> None:
    """Damage inside the signed text does not stay until the maximum age."""
    find(cached)
    path = only_file(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    asked = len(vendors.asked)
    find(cached)
    assert len(vendors.asked) == 2 * asked


def test_a_file_of_another_platform_is_absent(
    cached: CacheSource, tmp_path: Path, vendors: FakeVendors
) -> None:
    """A file under the wrong name is not believed."""
    find(cached)
    other = IntelPlatform(scheme="sgx", fmspc=FMSPC, ca="platform")
    only_file(tmp_path).rename(cached._path(other.key))
    with pytest.raises(TransportError):
        cached.find(Wanted("sgx", (other,)), NOW)


def test_another_service_has_its_own_entries(
    cached: CacheSource, fetcher: HttpFetcher, vendors: FakeVendors, tmp_path: Path
) -> None:
    """What one service said is not given out as another's."""
    find(cached)
    service = PcsSource(fetcher, vendors.url, update="early")
    early = CacheSource(service, tmp_path / "cache", max_age_s=3600)
    with pytest.raises(TransportError):
        early.find(WANTED, NOW)


def test_files_are_the_owners_and_whole(cached: CacheSource, tmp_path: Path) -> None:
    """Owner-only rights, and no temporary file is left."""
    find(cached)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(tmp_path).stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_costs_only_time(
    pcs: PcsSource, tmp_path: Path, vendors: FakeVendors
) -> None:
    """Without a cache everything works, and asks each time."""
    (tmp_path / "file").write_bytes(b"")
    cached = CacheSource(pcs, tmp_path / "file" / "cache", max_age_s=3600)
    assert find(cached) == find(cached)
    assert len(vendors.asked) == 8


def test_the_oldest_files_go(cached: CacheSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder does not grow without end."""
    monkeypatch.setattr(cache_module, "MAX_FILES", 2)
    find(cached)
    mine = only_file(tmp_path)
    for number in range(3):
        path = tmp_path / "cache" / f"{number}.json"
        path.write_bytes(b"")
        os.utime(path, (number, number))
    find(cached, 2)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {mine.name, "2.json"}


def test_the_default_folder_is_xdgs() -> None:
    """``XDG_CACHE_HOME`` where it is set, else below the home; without either an error."""
    assert default_cache({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/cloister/collateral")
    assert default_cache({"HOME": "/h", "XDG_CACHE_HOME": "relative"}) == Path(
        "/h/.cache/cloister/collateral"
    )
    with pytest.raises(ConfigError):
        default_cache({})


def test_an_age_of_nothing_is_refused(pcs: PcsSource, tmp_path: Path) -> None:
    """A cache that may keep nothing is a mistake; 0 in the settings leaves it out."""
    for age in (0, -1, float("nan")):
        with pytest.raises(ConfigError):
            CacheSource(pcs, tmp_path, max_age_s=age)


def test_entries_survive_their_json(endorsements: DcapEndorsements, cached: CacheSource) -> None:
    """What is read back is what was written."""
    assert find(cached).endorsements == endorsements
    assert parse_entry(find(cached).to_mapping()) == find(cached)

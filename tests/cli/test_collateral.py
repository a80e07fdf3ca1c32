"""``cloister collateral``: what it prints and writes, against services on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.attest import verify_evidence
from cloister.attest.collateral import BundleSource, get_endorsements
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.simulated import SimulatedPlatform
from cloister.cli.main import main
from tests.fakes.pcs import FakeVendors, serving
from tests.vectors import vector

NOW = datetime.now(UTC).replace(microsecond=0)
FMSPC = "90c06f000000"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    """A simulated platform of today."""
    return SimulatedPlatform.create(tmp_path_factory.mktemp("cli") / "platform", NOW)


@pytest.fixture
def vendors(
    platform: SimulatedPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeVendors]:
    """Services that know it, and an environment that names them."""
    vendors = FakeVendors()
    vendors.add_intel("tdx", FMSPC, "platform", platform.endorsements(NOW))
    with serving(vendors):
        monkeypatch.setenv("CLOISTER_COLLATERAL_PCS_URL", vendors.url)
        monkeypatch.setenv("CLOISTER_COLLATERAL_KDS_URL", vendors.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        yield vendors


@pytest.fixture
def quote(platform: SimulatedPlatform, tmp_path: Path) -> Path:
    """A file with a quote."""
    path = tmp_path / "quote.bin"
    path.write_bytes(platform.quote(bytes(64), mr_td=bytes(48)))
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in ("collateral", *arguments)])
    return int(ended.value.code or 0)


def test_fetch_writes_what_verifies(
    vendors: FakeVendors,
    quote: Path,
    tmp_path: Path,
    platform: SimulatedPlatform,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file is what ``from_mapping`` takes; the table says until when each part holds."""
    assert run("fetch", quote, "-o", tmp_path / "out.json") == 0
    found = DcapEndorsements.from_mapping(json.loads((tmp_path / "out.json").read_bytes()))
    verify_evidence("tdx", quote.read_bytes(), found, NOW, roots=[platform.root])
    shown = capsys.readouterr().out
    assert "TCB info" in shown
    assert "current" in shown


def test_fetch_by_fmspc_as_json(vendors: FakeVendors, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a quote, FMSPC and CA are enough; one JSON document comes out."""
    assert run("fetch", "--fmspc", FMSPC.upper(), "--ca", "platform", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["platform"] == {"scheme": "tdx", "fmspc": FMSPC, "ca": "platform"}
    assert document["parts"][0]["evaluation-data-number"] == 21
    DcapEndorsements.from_mapping(document["endorsements"])


def test_the_cache_is_shown(vendors: FakeVendors, quote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was fetched once is in the cache, and not fetched again."""
    assert run("show", "--cache", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    run("fetch", quote)
    asked = len(vendors.asked)
    run("fetch", quote)
    assert len(vendors.asked) == asked
    capsys.readouterr()
    assert run("show", "--cache", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_a_bundle_is_written_and_shown(
    vendors: FakeVendors, quote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several quotes of one platform make one entry, which works without a network."""
    bundle = tmp_path / "bundle.json"
    assert run("bundle", "-o", bundle, quote, quote) == 0
    assert get_endorsements("tdx", quote.read_bytes(), (BundleSource.from_file(bundle),), NOW)
    capsys.readouterr()
    assert run("show", bundle, "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert {part["state"] for part in entry["parts"]} == {"current"}


def test_show_says_what_has_expired(
    platform: SimulatedPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old collateral is shown, and marked."""
    old = platform.issuer.issue(NOW - timedelta(days=400))
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old.to_mapping()))
    assert run("show", path) == 0
    shown = capsys.readouterr().out
    assert "expired" in shown
    assert FMSPC in shown


def test_amds_endorsements_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A genuine VCEK shows product and chip, and no number."""
    der = vector("snp/dev/v3_genoa_vcek_227a641d.ek.der").read_bytes()
    path = tmp_path / "amd.json"
    path.write_text(json.dumps({"vcek": der.hex()}))
    assert run("show", path, "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["platform"]["product"] == "Genoa"
    assert entry["platform"]["chip_id"].startswith("0506ffba")
    assert run("show", path) == 0
    assert "Genoa VCEK" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("fetch",), 2),
        (("fetch", "absent.bin"), 2),
        (("fetch", "--fmspc", "xyz"), 2),
        (("fetch", "--fmspc", FMSPC, "--ca", "root"), 2),
        (("fetch", "--fmspc", "00" * 6), 5),
        (("fetch", "--scheme", "nitro", __file__), 2),
        (("fetch", "--scheme", "unknown", __file__), 4),
        (("fetch", __file__), 4),
        (("show",), 2),
        (("show", __file__), 4),
        (("show", "absent.json"), 2),
        (("show", "--cache", "absent.json"), 2),
        (("bundle", "-o", "/absent/x", __file__), 4),
        (("fetch", "--fmspc", FMSPC, "-o", "/absent/x"), 2),
    ],
)
def test_mistakes_have_their_exit_codes(
    vendors: FakeVendors, arguments: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong usage, unreadable input and an unknown platform are told apart, on one line."""
    assert run(*arguments) == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1

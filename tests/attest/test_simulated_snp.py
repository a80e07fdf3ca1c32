"""The simulated SEV-SNP platform: its files, its variants, its speed."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from statistics import median

import pytest

from cloister.attest import AppraisalDenied, ReferenceValues, appraise, verify_evidence
from cloister.attest.simulated import SimulatedSnpPlatform, snp
from cloister.errors import ConfigError, MalformedInput, Revoked, UntrustedRoot
from tests.attest.conftest import NOW, REPORT_DATA
from tests.attest.snp.conftest import MEASUREMENT, rsa_key


@pytest.fixture(autouse=True)
def fast_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """RSA keys are made once for all tests."""
    numbers = iter(range(100))
    monkeypatch.setattr(snp, "new_rsa_key", lambda: rsa_key(next(numbers) % 2))


@pytest.mark.parametrize(("product", "kind"), [("Genoa", "vcek"), ("Turin", "vcek"), ("Milan", "vlek")])
def test_loaded_platform_is_the_same(tmp_path: Path, product: str, kind: str) -> None:
    """A platform that was saved makes reports that verify under the same root and endorsements."""
    created = SimulatedSnpPlatform.create(tmp_path / "p", NOW, product=product, kind=kind)
    loaded = SimulatedSnpPlatform.load(tmp_path / "p")
    assert (loaded.root, loaded.extensions) == (created.root, created.extensions)
    raw = loaded.quote(REPORT_DATA, measurement=MEASUREMENT)
    claims = verify_evidence("sev-snp", raw, created.endorsements(NOW), NOW, roots=[created.root])
    assert claims.report_data == REPORT_DATA
    assert claims.simulated
    extended = raw + loaded.certificate_table()
    assert verify_evidence("sev-snp", extended, None, NOW, roots=[created.root]) is not None


def test_simulation_is_opt_in_twice(tmp_path: Path) -> None:
    """Its root is not trusted unless given, nor its evidence accepted unless reference values say so."""
    platform = SimulatedSnpPlatform.create(tmp_path / "p", NOW)
    raw = platform.quote(REPORT_DATA, measurement=MEASUREMENT)
    with pytest.raises(UntrustedRoot):
        verify_evidence("sev-snp", raw, platform.endorsements(NOW), NOW)
    claims = verify_evidence("sev-snp", raw, platform.endorsements(NOW), NOW, roots=[platform.root])
    table = {"measurement": [MEASUREMENT.hex()]}
    with pytest.raises(AppraisalDenied, match="simulated"):
        appraise(claims, ReferenceValues.from_mapping({"sev-snp": table}), NOW)
    result = appraise(claims, ReferenceValues.from_mapping({"allow_simulated": True, "sev-snp": table}), NOW)
    assert result.to_mapping()["simulated"]


def test_private_files_are_private(tmp_path: Path) -> None:
    """Private keys are readable by their owner only; root and endorsements by everyone."""
    SimulatedSnpPlatform.create(tmp_path / "p", NOW)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "p").iterdir()}
    private = {name for name in modes if name.endswith(".key")}
    assert len(private) == 3
    assert {modes[name] for name in private} == {0o600}
    assert modes["snp-root.pem"] == modes["snp-endorsements.json"] == 0o644
    public = b"".join(path.read_bytes() for path in (tmp_path / "p").iterdir() if path.name not in private)
    assert b"PRIVATE" not in public


def test_revoked_authority(tmp_path: Path) -> None:
    """Endorsements with a list that revokes the platform's authority can be had."""
    platform = SimulatedSnpPlatform.create(tmp_path / "p", NOW)
    raw = platform.quote(REPORT_DATA, measurement=MEASUREMENT)
    with pytest.raises(Revoked):
        verify_evidence("sev-snp", raw, platform.endorsements(NOW, revoke=True), NOW, roots=[platform.root])


def test_existing_and_unknown_platforms(tmp_path: Path) -> None:
    """A platform is not overwritten, and unknown products are errors."""
    SimulatedSnpPlatform.create(tmp_path / "p", NOW)
    with pytest.raises(ConfigError, match="already"):
        SimulatedSnpPlatform.create(tmp_path / "p", NOW)
    for unknown in ({"product": "Rome"}, {"kind": "vmrk"}):
        with pytest.raises(ConfigError):
            SimulatedSnpPlatform.create(tmp_path / "q", NOW, **unknown)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        SimulatedSnpPlatform.create(tmp_path / "file" / "p", NOW)


@pytest.mark.parametrize("name", ["snp-ark.key", "snp-key.key", "snp-endorsements.json", "snp-root.pem"])
def test_damaged_platform(tmp_path: Path, name: str) -> None:
    """A missing or damaged file is an error that says so."""
    SimulatedSnpPlatform.create(tmp_path / "p", NOW)
    (tmp_path / "p" / name).write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="damaged"):
        SimulatedSnpPlatform.load(tmp_path / "p")
    (tmp_path / "p" / name).unlink()
    with pytest.raises(ConfigError, match=name):
        SimulatedSnpPlatform.load(tmp_path / "p")


def test_wrong_lengths_are_refused(tmp_path: Path) -> None:
    """Fields of a report have their length."""
    platform = SimulatedSnpPlatform.create(tmp_path / "p", NOW)
    for wrong in ({"measurement": b"x"}, {"measurement": MEASUREMENT, "host_data": b"x"}):
        with pytest.raises(MalformedInput):
            platform.quote(REPORT_DATA, **wrong)
    with pytest.raises(MalformedInput):
        platform.quote(b"short", measurement=MEASUREMENT)


def test_reports_are_made_fast(tmp_path: Path) -> None:
    """A report takes less than 5 ms."""
    platform = SimulatedSnpPlatform.create(tmp_path / "p", NOW)

    def once() -> float:
        begin = time.perf_counter()
        platform.quote(REPORT_DATA, measurement=MEASUREMENT)
        return time.perf_counter() - begin

    assert median(once() for _ in range(30)) < 0.005

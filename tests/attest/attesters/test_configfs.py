"""Evidence from the kernel, against a stand-in of its folder."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cloister.attest import verify_evidence
from cloister.attest.attesters.configfs import ATTEMPTS, ConfigfsAttester
from cloister.attest.simulated import SimulatedPlatform, SimulatedSnpPlatform
from cloister.attest.snp import SnpClaims
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput
from tests.attest.conftest import MR_TD, NOW, REPORT_DATA
from tests.fakes.configfs import FakeConfigfsPath


@pytest.fixture
def reports(tmp_path: Path, platform: SimulatedPlatform, monkeypatch: pytest.MonkeyPatch) -> FakeConfigfsPath:
    """The kernel's folder; its quotes are made by a simulated platform."""
    make_quote = staticmethod(lambda report_data: platform.quote(report_data, mr_td=MR_TD))
    monkeypatch.setattr(FakeConfigfsPath, "make_quote", make_quote)
    for name in ("interfere", "failures", "made"):
        monkeypatch.setattr(FakeConfigfsPath, name, [])
    return FakeConfigfsPath(tmp_path)


@pytest.fixture
def sev_guest(
    reports: FakeConfigfsPath, snp_platform: SimulatedSnpPlatform, monkeypatch: pytest.MonkeyPatch
) -> FakeConfigfsPath:
    """The same folder on a SEV-SNP guest whose kernel runs at VMPL 2, below an SVSM."""
    quote = staticmethod(lambda report_data: snp_platform.quote(report_data, measurement=MR_TD, vmpl=2))
    monkeypatch.setattr(FakeConfigfsPath, "make_quote", quote)
    monkeypatch.setattr(FakeConfigfsPath, "provider", b"sev_guest\n")
    monkeypatch.setattr(FakeConfigfsPath, "privlevel_floor", 2)
    monkeypatch.setattr(FakeConfigfsPath, "auxblob", snp_platform.certificate_table())
    return reports


def attester_of(reports: FakeConfigfsPath) -> ConfigfsAttester:
    """An Attester that does not wait between attempts."""
    return ConfigfsAttester(reports, pause=lambda seconds: None)


def test_quote_of_the_kernel(reports: FakeConfigfsPath, platform: SimulatedPlatform) -> None:
    """The kernel's quote carries our report data, and the report's folder is removed again."""
    attester = attester_of(reports)
    evidence = attester.get_evidence(REPORT_DATA)
    claims = verify_evidence(
        evidence.scheme, evidence.raw, platform.endorsements(NOW), NOW, roots=[platform.root]
    )
    assert claims.report_data == REPORT_DATA
    assert attester.get_endorsements() is None
    assert FakeConfigfsPath.made == [REPORT_DATA]
    assert not list(reports.iterdir())


def test_report_of_sev_snp(sev_guest: FakeConfigfsPath, snp_platform: SimulatedSnpPlatform) -> None:
    """On SEV-SNP the report is for the guest's own VMPL, and the host's certificates endorse it."""
    attester = attester_of(sev_guest)
    evidence = attester.get_evidence(REPORT_DATA)
    endorsements = attester.get_endorsements()
    claims = verify_evidence("sev-snp", evidence.raw, endorsements, NOW, roots=[snp_platform.root])
    assert isinstance(claims, SnpClaims)
    assert (claims.report_data, claims.vmpl) == (REPORT_DATA, 2)
    assert len(FakeConfigfsPath.made) == 1, "evidence and endorsements are of one report"


def test_endorsements_come_without_evidence(sev_guest: FakeConfigfsPath) -> None:
    """Certificates can be had before the first evidence."""
    assert attester_of(sev_guest).get_endorsements() is not None


@pytest.mark.parametrize("table", [b"", bytes(4096)])
def test_host_without_certificates(
    sev_guest: FakeConfigfsPath, table: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that hands out no certificates leaves them to the verifier."""
    monkeypatch.setattr(FakeConfigfsPath, "auxblob", table)
    assert attester_of(sev_guest).get_endorsements() is None


def test_damaged_certificate_table(sev_guest: FakeConfigfsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host puts into its table is not believed to have a form."""
    monkeypatch.setattr(FakeConfigfsPath, "auxblob", b"\xff" * 100)
    with pytest.raises(MalformedInput):
        attester_of(sev_guest).get_endorsements()


@pytest.mark.parametrize("event", ["before", "after", "lost"])
def test_interference_is_survived(reports: FakeConfigfsPath, event: str) -> None:
    """A report that another process wrote to, or that did not take our data, is made again."""
    FakeConfigfsPath.interfere.append(event)
    assert attester_of(reports).get_evidence(REPORT_DATA).raw
    assert FakeConfigfsPath.interfere == []
    assert not list(reports.iterdir())


@pytest.mark.parametrize(
    ("event", "reason"),
    [("before", "another process wrote"), ("after", "another process wrote"), ("lost", "did not take")],
)
def test_constant_interference_is_an_error(reports: FakeConfigfsPath, event: str, reason: str) -> None:
    """If another process keeps writing to our reports, none of them is used."""
    FakeConfigfsPath.interfere.extend([event] * 99)
    with pytest.raises(KeyUnavailable, match=reason):
        attester_of(reports).get_evidence(REPORT_DATA)
    assert not list(reports.iterdir())


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR])
def test_busy_quoting_service(reports: FakeConfigfsPath, number: int) -> None:
    """A quoting service that is busy is asked again, after longer and longer pauses."""
    FakeConfigfsPath.failures.extend([number] * (ATTEMPTS - 1))
    pauses: list[float] = []
    attester = ConfigfsAttester(reports, pause=pauses.append)
    assert attester.get_evidence(REPORT_DATA).raw
    assert pauses == sorted(set(pauses))
    assert len(pauses) == ATTEMPTS - 1


def test_service_that_stays_busy(reports: FakeConfigfsPath) -> None:
    """After the last attempt it is an error that says why."""
    FakeConfigfsPath.failures.extend([errno.EBUSY] * ATTEMPTS)
    with pytest.raises(KeyUnavailable, match="busy"):
        attester_of(reports).get_evidence(REPORT_DATA)
    assert not list(reports.iterdir())


def test_other_failures_are_not_tried_again(reports: FakeConfigfsPath) -> None:
    """An error of the hardware is reported at once."""
    FakeConfigfsPath.failures.extend([errno.EIO, 0])
    with pytest.raises(KeyUnavailable, match="outblob"):
        attester_of(reports).get_evidence(REPORT_DATA)
    assert FakeConfigfsPath.failures == [0]


def test_empty_quote(reports: FakeConfigfsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quoting service that does not work is an error."""
    attester = attester_of(reports)
    monkeypatch.setattr(FakeConfigfsPath, "make_quote", staticmethod(lambda report_data: b""))
    with pytest.raises(KeyUnavailable, match="empty"):
        attester.get_evidence(REPORT_DATA)


def test_provider_changes(reports: FakeConfigfsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of another provider than at the start is not handed on under the wrong scheme."""
    attester = attester_of(reports)
    monkeypatch.setattr(FakeConfigfsPath, "provider", b"sev_guest\n")
    with pytest.raises(KeyUnavailable, match="sev_guest"):
        attester.get_evidence(REPORT_DATA)


@pytest.mark.parametrize(("provider", "reason"), [(b"arm_cca_guest\n", "arm_cca_guest"), (b"", "no TEE")])
def test_unknown_provider(
    reports: FakeConfigfsPath, provider: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider whose evidence is not supported is named, and so is its absence."""
    monkeypatch.setattr(FakeConfigfsPath, "provider", provider)
    with pytest.raises(ConfigError, match=reason):
        ConfigfsAttester(reports)


def test_plain_folder_is_no_kernel(tmp_path: Path) -> None:
    """A folder without the kernel behind it does not work, and is left as it was."""
    with pytest.raises(KeyUnavailable, match="provider"):
        ConfigfsAttester(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [0, 63, 65])
def test_report_data_has_64_bytes(reports: FakeConfigfsPath, length: int) -> None:
    """Report data of another length is refused."""
    with pytest.raises(MalformedInput):
        attester_of(reports).get_evidence(bytes(length))


def test_no_rights(tmp_path: Path) -> None:
    """A folder in which no report can be made is an error that says so."""
    with pytest.raises(KeyUnavailable, match="cannot make a report"):
        ConfigfsAttester(tmp_path / "absent")

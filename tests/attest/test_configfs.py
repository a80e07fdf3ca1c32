"""Evidence from the kernel, against a stand-in of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attest import verify_evidence
from cloister.attest.configfs import ConfigfsAttester
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput
from tests.attest.conftest import MR_TD, NOW, REPORT_DATA
from tests.fakes.configfs import FakeConfigfsPath


@pytest.fixture
def reports(tmp_path: Path, platform: SimulatedPlatform, monkeypatch: pytest.MonkeyPatch) -> FakeConfigfsPath:
    """The kernel's folder; its quotes are made by a simulated platform."""
    make_quote = staticmethod(lambda report_data: platform.quote(report_data, mr_td=MR_TD))
    monkeypatch.setattr(FakeConfigfsPath, "make_quote", make_quote)
    return FakeConfigfsPath(tmp_path)


def test_quote_of_the_kernel(reports: FakeConfigfsPath, platform: SimulatedPlatform) -> None:
    """The kernel's quote carries our report data, and the report's folder is removed again."""
    attester = ConfigfsAttester(reports)
    evidence = attester.get_evidence(REPORT_DATA)
    claims = verify_evidence(
        evidence.scheme, evidence.raw, platform.endorsements(NOW), NOW, roots=[platform.root]
    )
    assert claims.report_data == REPORT_DATA
    assert attester.get_endorsements() is None
    assert not list(reports.iterdir())


def test_interference_is_noticed(reports: FakeConfigfsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process wrote to the report, its quote is not used."""
    attester = ConfigfsAttester(reports)
    monkeypatch.setattr(FakeConfigfsPath, "interfere", True)
    with pytest.raises(KeyUnavailable, match="generation"):
        attester.get_evidence(REPORT_DATA)
    assert not list(reports.iterdir())


def test_empty_quote(reports: FakeConfigfsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quoting service that does not work is an error."""
    attester = ConfigfsAttester(reports)
    monkeypatch.setattr(FakeConfigfsPath, "make_quote", staticmethod(lambda report_data: b""))
    with pytest.raises(KeyUnavailable, match="empty"):
        attester.get_evidence(REPORT_DATA)


def test_unknown_provider(reports: FakeConfigfsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider whose evidence is not supported is named."""
    monkeypatch.setattr(FakeConfigfsPath, "provider", b"arm_cca_guest\n")
    with pytest.raises(ConfigError, match="arm_cca_guest"):
        ConfigfsAttester(reports)


def test_plain_folder_is_no_kernel(tmp_path: Path) -> None:
    """A folder without the kernel behind it does not work, and is left as it was."""
    with pytest.raises(KeyUnavailable, match="provider"):
        ConfigfsAttester(tmp_path)
    assert not list(tmp_path.iterdir())


def test_report_data_has_64_bytes(reports: FakeConfigfsPath) -> None:
    """Report data of another length is refused."""
    with pytest.raises(MalformedInput):
        ConfigfsAttester(reports).get_evidence(b"short")


def test_no_rights(tmp_path: Path) -> None:
    """A folder in which no report can be made is an error that says so."""
    with pytest.raises(KeyUnavailable, match="cannot make a report"):
        ConfigfsAttester(tmp_path / "absent")

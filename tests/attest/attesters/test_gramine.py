"""Evidence from Gramine, against a stand-in of its pseudo-files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cloister.attest import verify_evidence
from cloister.attest.attesters.gramine import GramineAttester
from cloister.attest.dcap import SgxClaims
from cloister.attest.simulated import SimulatedPlatform, SimulatedSgxPlatform
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput
from tests.attest.conftest import MR_TD, NOW, REPORT_DATA
from tests.fakes.gramine import FakeGramineFolder

MR_ENCLAVE = bytes(range(32))


@pytest.fixture
def folder(
    tmp_path: Path, sgx_platform: SimulatedSgxPlatform, monkeypatch: pytest.MonkeyPatch
) -> FakeGramineFolder:
    """An enclave's pseudo-files; its quotes are made by a simulated platform."""
    quote = staticmethod(lambda report_data: sgx_platform.quote(report_data, mr_enclave=MR_ENCLAVE))
    monkeypatch.setattr(FakeGramineFolder, "make_quote", quote)
    return FakeGramineFolder.create(tmp_path)


def test_quote_of_an_enclave(folder: FakeGramineFolder, sgx_platform: SimulatedSgxPlatform) -> None:
    """Gramine's quote carries our report data and verifies as SGX evidence."""
    attester = GramineAttester(folder)
    evidence = attester.get_evidence(REPORT_DATA)
    collateral = sgx_platform.endorsements(NOW)
    claims = verify_evidence(evidence.scheme, evidence.raw, collateral, NOW, roots=[sgx_platform.root])
    assert isinstance(claims, SgxClaims)
    assert (claims.report_data, claims.mr_enclave) == (REPORT_DATA, MR_ENCLAVE)
    assert attester.get_endorsements() is None


@pytest.mark.parametrize("kind", ["epid", "none", ""])
def test_other_attestation_types(tmp_path: Path, kind: str) -> None:
    """Only DCAP is supported; the error says what to put into the manifest."""
    with pytest.raises(ConfigError, match="attestation type") as caught:
        GramineAttester(FakeGramineFolder.create(tmp_path, kind))
    assert "sgx.remote_attestation" in caught.value.hint


def test_a_newline_after_the_type_is_no_other_type(folder: FakeGramineFolder, tmp_path: Path) -> None:
    """Whether the pseudo-file ends with a newline does not matter."""
    (tmp_path / "attestation_type").write_bytes(b"dcap\n")
    assert GramineAttester(folder).scheme == "sgx"


def test_interference_is_noticed(folder: FakeGramineFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote that carries another thread's data is not handed on."""
    monkeypatch.setattr(FakeGramineFolder, "interfere", True)
    with pytest.raises(KeyUnavailable, match="other data"):
        GramineAttester(folder).get_evidence(REPORT_DATA)


def test_no_quoting_service(folder: FakeGramineFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quoting service that does not answer is an error that names it."""
    monkeypatch.setattr(FakeGramineFolder, "failure", errno.EPERM)
    with pytest.raises(KeyUnavailable) as caught:
        GramineAttester(folder).get_evidence(REPORT_DATA)
    assert "aesmd" in caught.value.hint


@pytest.mark.parametrize("raw", [b"", b"not a quote", bytes(5000)])
def test_no_quote(folder: FakeGramineFolder, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not a quote is not handed on."""
    monkeypatch.setattr(FakeGramineFolder, "make_quote", staticmethod(lambda report_data: raw))
    with pytest.raises(KeyUnavailable, match="no usable quote"):
        GramineAttester(folder).get_evidence(REPORT_DATA)


def test_quote_of_another_kind(
    folder: FakeGramineFolder, platform: SimulatedPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TDX quote is no evidence of an enclave."""
    quote = staticmethod(lambda report_data: platform.quote(report_data, mr_td=MR_TD))
    monkeypatch.setattr(FakeGramineFolder, "make_quote", quote)
    with pytest.raises(KeyUnavailable):
        GramineAttester(folder).get_evidence(REPORT_DATA)


def test_not_under_gramine(tmp_path: Path) -> None:
    """Without the pseudo-files the Attester cannot be made."""
    with pytest.raises(KeyUnavailable, match="attestation_type"):
        GramineAttester(tmp_path)


def test_report_data_has_64_bytes(folder: FakeGramineFolder) -> None:
    """Report data of another length is refused, and not padded."""
    with pytest.raises(MalformedInput):
        GramineAttester(folder).get_evidence(b"short")

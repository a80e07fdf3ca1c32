"""Every entry of the vectors' manifest that states a verdict gives that verdict, at its time: one row each.

The kinds' own test modules hold the loaders and the details; this one holds the list, so that an entry which
nobody judges shows. The count by kind is printed at the end of the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attest import test_dcap_vectors as dcap
from tests.attest.azure import test_vectors as azure
from tests.attest.eventlog import test_vectors as eventlog
from tests.attest.nitro import test_vectors as nitro
from tests.attest.nvidia import test_vectors as nvidia
from tests.attest.snp import test_vectors as snp
from tests.attest.tpm import test_vectors as tpm
from tests.conftest import count_vector
from tests.vectors import vector, vectors_folder

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length")
Entry = dict[str, Any]


def _mutations(judge: Callable[[str, int], None]) -> Callable[[Entry], None]:
    """Judge every mutation that one file lists."""

    def judge_all(entry: Entry) -> None:
        for index in range(len(json.loads(vector(entry["file"]).read_text())["mutations"])):
            judge(entry["file"], index)

    return judge_all


def _by_file(judge: Callable[[str], None]) -> Callable[[Entry], None]:
    return lambda entry: judge(entry["file"])


def _by_name(judge: Callable[[str], None]) -> Callable[[Entry], None]:
    return lambda entry: judge(Path(entry["file"]).name)


def _machine(entry: Entry) -> None:
    azure.test_machine_has_its_verdict(str(Path(entry["file"]).parent))


JUDGES: dict[str, Callable[[Entry], None]] = {
    "dcap-case": _by_name(dcap.test_case_has_its_verdict),
    "dcap-mutations": _by_name(dcap.test_listed_mutations_are_refused),
    "snp": snp.test_report_has_its_verdict,
    "snp-mutations": snp.test_listed_mutations_are_refused,
    "snp-cert": snp.test_certificate_says_what_is_stated,
    "snp-crl": snp.test_crl_says_what_is_stated,
    "azure-vtpm": _machine,
    "azure-hcl": azure.test_report_binds_its_runtime_data,
    "tpm": tpm.test_quote_has_its_verdict,
    "vtpm-cert": tpm.test_pinned_certificates_are_the_published_ones,
    "tpm-eventlog": eventlog.test_log_replays_as_expected,
    "ccel": eventlog.test_log_replays_as_expected,
    "nitro": _by_file(nitro.test_document_has_its_verdict),
    "nitro-mutations": _mutations(nitro.test_listed_mutations_are_refused),
    "nvidia": _by_file(nvidia.test_report_has_its_verdict),
    "nvidia-mutations": _mutations(nvidia.test_listed_mutations),
    "nvidia-ocsp": nvidia.test_each_ocsp_response,
    "nvidia-cert": nvidia.test_each_chain,
}


def _states_a_verdict(entry: Entry) -> bool:
    """Whether an entry says what must come out; parts of a larger piece of evidence do not."""
    kind, file, expected = entry["kind"], entry["file"], entry["expected"]
    if kind in {"dcap-mutations", "snp-mutations", "nitro-mutations", "nvidia-mutations"}:
        return True
    if kind == "nvidia-cert":
        return "subjects" in expected
    if kind == "tpm":
        return entry in tpm.QUOTES
    if kind in {"tpm-eventlog", "ccel"}:
        return entry in eventlog.LOGS
    if kind == "nvidia":
        return file in nvidia.REPORTS
    return bool(expected)


def _entries() -> list[Entry]:
    manifest = vectors_folder() / "MANIFEST.json"
    listed: list[Entry] = json.loads(manifest.read_text())["entries"] if manifest.is_file() else []
    return [entry for entry in listed if entry["kind"] in JUDGES and _states_a_verdict(entry)]


@pytest.mark.parametrize("entry", _entries(), ids=lambda entry: f"{entry['kind']}:{Path(entry['file']).name}")
def test_entry_has_its_verdict(entry: Entry) -> None:
    """What the manifest states of this file is what comes out."""
    try:
        JUDGES[entry["kind"]](entry)
    except pytest.skip.Exception:
        count_vector(entry["kind"], "absent")
        raise
    count_vector(entry["kind"], "as stated")


def test_no_kind_is_forgotten() -> None:
    """Each kind of evidence in the manifest has a judge, and each judge has something to do."""
    if not _entries():
        pytest.skip(f"no test vectors at {vectors_folder()}; set CLOISTER_VECTORS")
    assert set(Counter(entry["kind"] for entry in _entries())) == set(JUDGES)

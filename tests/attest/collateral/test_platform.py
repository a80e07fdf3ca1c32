"""What evidence asks its vendor for."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.collateral.platform import AmdPlatform, IntelPlatform, detect_scheme, read_wanted
from cloister.attest.simulated import SimulatedSnpPlatform
from cloister.attest.verifier import SCHEMES
from cloister.errors import ConfigError, MalformedInput, VerificationError
from tests.attest.collateral.conftest import FMSPC, MEASUREMENT
from tests.attest.conftest import REPORT_DATA
from tests.vectors import vector, vectors_folder

QUOTES = sorted(
    path.relative_to(vectors_folder()).as_posix()
    for kind in ("tdx", "sgx")
    for path in (vectors_folder() / kind / "quotes").glob("*.bin")
)


def test_a_quote_names_family_and_authority(quote: bytes) -> None:
    """FMSPC and CA come out of the PCK certificate inside the quote."""
    assert read_wanted("tdx", quote).platforms == (IntelPlatform(scheme="tdx", fmspc=FMSPC, ca="platform"),)
    assert detect_scheme(quote) == "tdx"


def test_a_report_names_chip_and_level(report: bytes, snp_platform: SimulatedSnpPlatform) -> None:
    """Product, key, chip and TCB come out of the report."""
    (platform,) = read_wanted("sev-snp", report).platforms
    own = snp_platform.extensions
    assert platform.key == {
        "scheme": "sev-snp",
        "product": "Genoa",
        "kind": "vcek",
        "chip_id": own.hwid.hex(),
        "tcb": own.tcb.hex(),
    }
    assert detect_scheme(report) == "sev-snp"


def test_a_report_without_product_has_several_guesses(snp_platform: SimulatedSnpPlatform) -> None:
    """Version 2 does not say which product it is of: both that fit are asked for."""
    raw = snp_platform.quote(REPORT_DATA, measurement=MEASUREMENT, version=2)
    wanted = read_wanted("sev-snp", raw)
    assert [item.product for item in wanted.platforms if isinstance(item, AmdPlatform)] == ["Milan", "Genoa"]
    assert "Milan/Genoa" in wanted.label


def test_certificates_inside_evidence_are_kept(report: bytes, snp_platform: SimulatedSnpPlatform) -> None:
    """The certificate table behind a report is read with it."""
    wanted = read_wanted("sev-snp", report + snp_platform.certificate_table())
    assert wanted.carried.vcek is not None
    assert read_wanted("sev-snp", report).carried.vcek is None


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) & {"nitro", "nvidia", "tpm"}))
def test_other_schemes_ask_nobody(scheme: str) -> None:
    """A scheme whose vendor has no such service wants nothing."""
    assert read_wanted(scheme, b"anything").platforms == ()


@pytest.mark.parametrize(
    ("scheme", "fmspc", "ca"),
    [
        ("tdx", "90c06f0000", "platform"),
        ("tdx", "90C06F000000", "platform"),
        ("tdx", "../../000000", "platform"),
        ("tdx", FMSPC, "root"),
        ("nitro", FMSPC, "platform"),
    ],
)
def test_names_that_are_none_are_refused(scheme: str, fmspc: str, ca: str) -> None:
    """Nothing but an FMSPC and a known CA gets into a request."""
    with pytest.raises(ConfigError):
        IntelPlatform(scheme=scheme, fmspc=fmspc, ca=ca)  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_random_bytes_are_malformed(raw: bytes) -> None:
    """Whatever the bytes, only declared errors come out."""
    for scheme in ("tdx", "sgx", "sev-snp", "unknown"):
        with pytest.raises((MalformedInput, VerificationError)):
            read_wanted(scheme, raw)
    with pytest.raises(MalformedInput):
        detect_scheme(raw)


@given(st.integers(min_value=0, max_value=10_000), st.integers(min_value=1, max_value=255))
def test_changed_quotes_raise_nothing_else(quote: bytes, at: int, change: int) -> None:
    """A quote with a changed byte is read, or malformed."""
    raw = bytearray(quote)
    raw[at % len(raw)] ^= change
    with contextlib.suppress(MalformedInput):
        read_wanted("tdx", bytes(raw))


@pytest.mark.parametrize("name", QUOTES)
def test_genuine_quotes(name: str) -> None:
    """Every genuine quote names its platform: its file does too."""
    raw = vector(name).read_bytes()
    scheme = Path(name).parts[0]
    assert detect_scheme(raw) == scheme
    (platform,) = read_wanted(scheme, raw).platforms
    assert isinstance(platform, IntelPlatform)
    assert platform.fmspc in name


def test_azure_evidence_wants_what_its_hardware_needs() -> None:
    """The report or quote inside Azure's evidence is what is asked for; its own VCEK is kept."""
    raw = vector("azure-vtpm/dev/trustee_az-snp-vtpm_evidence-v1/evidence.json").read_bytes()
    wanted = read_wanted("az-snp-vtpm", raw)
    assert wanted.platforms[0].key["product"] == "Milan"
    assert wanted.carried.vcek is not None
    raw = vector("azure-vtpm/dev/trustee_az-tdx-vtpm_evidence-v1/evidence.json").read_bytes()
    (platform,) = read_wanted("az-tdx-vtpm", raw).platforms
    assert platform.key == {"scheme": "tdx", "fmspc": "00806f050000", "ca": "platform"}

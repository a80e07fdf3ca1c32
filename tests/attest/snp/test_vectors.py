"""Genuine AMD reports, certificates and revocation lists: every entry of the manifest gives its verdict."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import AppraisalDenied, ReferenceValues, appraise, verify_evidence
from cloister.attest.model import TrustTier
from cloister.attest.snp import SnpClaims, SnpEndorsements
from cloister.attest.snp.certificate import load_certificate, spki
from cloister.attest.snp.chain import open_chain, open_crl
from cloister.attest.snp.extensions import parse_extensions
from cloister.attest.snp.roots import AMD_REVOKED, amd_authority, amd_roots
from cloister.attest.snp.tcb import decode_tcb, encode_tcb
from cloister.errors import CloisterError, MalformedInput, Revoked, StaleEvidence, VerificationError
from tests.attest.test_dcap_vectors import mutate
from tests.vectors import vector, vectors_folder

COUNTS: Counter[str] = Counter()


def _entries(kind: str) -> list[dict[str, Any]]:
    manifest = vectors_folder() / "MANIFEST.json"
    if not manifest.is_file():
        return []
    entries: list[dict[str, Any]] = json.loads(manifest.read_text())["entries"]
    return [entry for entry in entries if entry["kind"] == kind]


def _file(entry: dict[str, Any]) -> str:
    return str(entry["file"])


REPORTS, CERTIFICATES, CRLS, MUTATIONS, CONTAINERS = (
    _entries(kind) for kind in ("snp", "snp-cert", "snp-crl", "snp-mutations", "aci")
)
GENUINE = [entry for entry in REPORTS if (vectors_folder() / entry["endorsement_cert"]).is_file()]


def read(path: str) -> bytes:
    """One vector; skips where it is absent."""
    file = vector(path)
    if not file.exists():
        pytest.skip(f"{path} is not among the vectors")
    return file.read_bytes()


def middle(window: list[str]) -> datetime:
    """A time between two dates."""
    begin, end = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in window)
    return begin + (end - begin) / 2


class Case:
    """One report with its certificate, at a time at which both hold."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.expected: dict[str, Any] = entry["expected"]
        self.raw = read(entry["file"])
        self.certificate = read(entry["endorsement_cert"])
        kind = "vlek" if "VLEK" in self.expected["endorsement_chain"] else "vcek"
        self.endorsements = SnpEndorsements.from_mapping({kind: self.certificate})
        self.now = middle(self.expected["verify_at"].split(".."))

    def verify(self, raw: bytes | None = None) -> SnpClaims:
        """Verify under AMD's pinned keys."""
        evidence = self.raw if raw is None else raw
        claims = verify_evidence("sev-snp", evidence, self.endorsements, self.now)
        assert isinstance(claims, SnpClaims)
        return claims

    def reference_values(self, claims: SnpClaims, **more: object) -> ReferenceValues:
        """Values that expect this measurement and privilege level."""
        table = {"measurement": [claims.measurement.hex()], "max_vmpl": claims.vmpl, **more}
        return ReferenceValues.from_mapping({"sev-snp": table})


@pytest.mark.parametrize("entry", REPORTS, ids=_file)
def test_report_has_its_verdict(entry: dict[str, Any]) -> None:
    """Each genuine report verifies, says what the manifest states, and is accepted or denied as it states."""
    case = Case(entry)
    claims = case.verify()
    assert stated_fields(claims, case.expected) == {}
    values = case.reference_values(claims)
    if case.expected["verdict"].startswith("accept"):
        assert appraise(claims, values, case.now).tier in (TrustTier.AFFIRMING, TrustTier.WARNING)
        COUNTS["accept"] += 1
        return
    assert "DEBUG" in case.expected["verdict"]
    with pytest.raises(AppraisalDenied) as caught:
        appraise(claims, values, case.now)
    assert [check.name for check in caught.value.result.checks if not check.passed] == ["debug"]
    COUNTS["reject"] += 1


def stated_fields(claims: SnpClaims, expected: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that the manifest states otherwise than the claims: expected and found."""
    tcbs = {
        name: encode_tcb(dict(getattr(claims, name)), claims.product).hex()
        for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
    }
    cpuid = (claims.cpuid_fam_id, claims.cpuid_mod_id, claims.cpuid_step)
    found = {
        **{name: value.hex() for name in HEXADECIMAL if (value := getattr(claims, name)) is not None},
        **tcbs,
        "version": claims.version,
        "guest_svn": claims.guest_svn,
        "policy": hex(claims.policy),
        "debug": claims.debug,
        "migrate_ma": claims.guest_policy["migrate_ma"],
        "vmpl": claims.vmpl,
        "signing_key": claims.signing_key,
        "platform_info": hex(claims.platform_info),
        "cpuid": None if cpuid[0] is None else "".join(f"{part:02x}" for part in cpuid),
        "product_name": claims.product_name,
        "mask_chip_key": int(claims.mask_chip_key),
        "author_key_en": int(claims.author_key_en),
        "launch_mit_vector": hex(claims.launch_mit_vector or 0),
        "current_mit_vector": hex(claims.current_mit_vector or 0),
    }
    return {
        name: (value, found[name])
        for name, value in expected.items()
        if name in found and found[name] != value
    }


HEXADECIMAL = (
    "report_data",
    "measurement",
    "host_data",
    "id_key_digest",
    "author_key_digest",
    "report_id",
    "chip_id",
)


@pytest.mark.parametrize("entry", GENUINE, ids=_file)
def test_report_outside_its_time(entry: dict[str, Any]) -> None:
    """The same report is refused the day before its certificate begins and the day after it ends."""
    case = Case(entry)
    begin, end = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in case.expected["cert_valid"])
    for moment in (begin - timedelta(days=1), end + timedelta(days=2)):
        with pytest.raises(StaleEvidence):
            verify_evidence("sev-snp", case.raw, case.endorsements, moment)


@pytest.mark.parametrize("entry", MUTATIONS, ids=_file)
def test_listed_mutations_are_refused(entry: dict[str, Any]) -> None:
    """Every listed change to a genuine report is refused, and so is every other processor's certificate."""
    document = json.loads(read(entry["file"]))
    base = next(own for own in REPORTS if own["file"] == document["base"])
    case = Case(base)
    case.verify()
    for mutation in document["mutations"]:
        assert mutation["expected_reject"]
        with pytest.raises((VerificationError, MalformedInput)):
            case.verify(mutate(case.raw, mutation["ops"]))
        COUNTS["mutation refused"] += 1
    for other in GENUINE:
        certificate = read(other["endorsement_cert"])
        if certificate == case.certificate:
            continue
        now = max(case.now, middle(other["expected"]["cert_valid"]))
        with pytest.raises(VerificationError):
            verify_evidence("sev-snp", case.raw, SnpEndorsements.from_mapping({"ek": certificate}), now)


@pytest.mark.parametrize("entry", CERTIFICATES, ids=_file)
def test_certificate_says_what_is_stated(entry: dict[str, Any]) -> None:
    """AMD's roots and authorities are the pinned ones; endorsement keys have the stated extensions."""
    expected, raw = entry["expected"], read(entry["file"])
    if "tcb" not in expected:
        name = Path(entry["file"]).stem
        certificate = x509.load_pem_x509_certificate(raw)
        product = name.split("_")[1].capitalize()
        kind = "vlek" if name.startswith("asvk") else "vcek"
        own = (
            amd_roots()[("Milan", "Genoa", "Turin").index(product)]
            if name.startswith("ark")
            else amd_authority(product, kind)
        )
        assert spki(certificate) == spki(own)
        return
    certificate = load_certificate(raw, "endorsement key")
    extensions = parse_extensions(certificate)
    tcb = decode_tcb(extensions.tcb, extensions.product)
    stated = expected["tcb"]
    assert [tcb["bootloader"], tcb["tee"], tcb["snp"], tcb["microcode"], tcb.get("fmc")] == [
        stated[name] for name in ("bl", "tee", "snp", "ucode", "fmc")
    ]
    assert (extensions.hwid.hex() or None) == stated["hwid"]
    assert extensions.product_name == stated["product"]
    assert hex(certificate.serial) == expected["serial"]


@pytest.mark.parametrize("entry", CRLS, ids=_file)
def test_crl_says_what_is_stated(entry: dict[str, Any]) -> None:
    """AMD's revocation lists verify under their root, and under no other."""
    expected, raw = entry["expected"], read(entry["file"])
    root = next(root for root in amd_roots() if root.subject == x509.load_der_x509_crl(raw).issuer)
    crl = open_crl(raw, root)
    assert str(crl.issued) == expected["this_update"]
    assert str(crl.expires) == expected["next_update"]
    assert sorted(map(hex, crl.serials)) == expected["revoked"]
    for other in amd_roots():
        if other is not root:
            with pytest.raises(VerificationError):
                open_crl(raw, other)


def test_amds_own_crls_with_reports() -> None:
    """With AMD's list a genuine report verifies while the list holds: it revokes an ASK no longer in use."""
    crls = {product: f"snp/crl/amd_{product}" for product in ("milan", "genoa")}
    used = 0
    for entry in GENUINE:
        case = Case(entry)
        product = case.expected["endorsement_chain"].split("(")[1].rstrip(")")
        files = [own["file"] for own in CRLS if own["file"].startswith(crls.get(product, "-"))]
        for file in files:
            crl = x509.load_der_x509_crl(read(file))
            assert crl.next_update_utc is not None
            moment = crl.last_update_utc + timedelta(days=180)
            begin, end = (
                datetime.fromisoformat(day).replace(tzinfo=UTC) for day in case.expected["cert_valid"]
            )
            if not begin + timedelta(days=1) < moment < end:
                continue
            given = SnpEndorsements.from_mapping({"ek": case.certificate, "crl": read(file)})
            claims = verify_evidence("sev-snp", case.raw, given, moment)
            assert isinstance(claims, SnpClaims)
            assert claims.crl_issued == crl.last_update_utc.isoformat()
            with pytest.raises(StaleEvidence):
                verify_evidence("sev-snp", case.raw, given, crl.next_update_utc + timedelta(seconds=1))
            used += 1
    if not used:
        pytest.skip("no report and list that hold at one time")


def test_revoked_genoa_authority_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority with a serial number that AMD is known to have revoked is refused without a list too."""
    case = next(
        (Case(entry) for entry in GENUINE if "(genoa)" in entry["expected"]["endorsement_chain"]), None
    )
    if case is None:
        pytest.skip("no report of Genoa among the vectors")
    assert ("Genoa", 0x20001) in AMD_REVOKED
    monkeypatch.setattr("cloister.attest.snp.chain.AMD_REVOKED", frozenset({("Genoa", 0x20002)}))
    open_chain.cache_clear()
    authority = amd_authority("Genoa", "vcek").public_bytes(Encoding.DER)
    given = SnpEndorsements.from_mapping({"vcek": case.certificate, "ask": authority})
    with pytest.raises(Revoked):
        verify_evidence("sev-snp", case.raw, given, case.now)


@pytest.mark.parametrize("entry", CONTAINERS, ids=_file)
def test_container_instance_evidence(entry: dict[str, Any]) -> None:
    """Azure container instances send the report and, as base64 of PEM, its whole chain."""
    document, expected = json.loads(read(entry["file"])), entry["expected"]
    raw = base64.b64decode(document["evidence"])
    given = SnpEndorsements.from_mapping({"cert_chain": document["endorsements"]})
    assert given.vcek is not None
    now = load_certificate(given.vcek, "VCEK").not_before + timedelta(days=30)
    claims = verify_evidence("sev-snp", raw, given, now)
    assert isinstance(claims, SnpClaims)
    assert not claims.simulated
    stated = {**expected["report"], "product_name": expected["tcb"]["product"]}
    assert stated_fields(claims, stated) == {}
    COUNTS["accept (aci)"] += 1


FLIPPED = [Case(entry) for entry in GENUINE[::5]]


@given(data=st.data())
def test_any_changed_byte_of_a_genuine_report_is_refused(data: st.DataObject) -> None:
    """No byte of a genuine report can be changed unnoticed."""
    if not FLIPPED:
        pytest.skip("no vectors")
    case = data.draw(st.sampled_from(FLIPPED))
    raw = bytearray(case.raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((VerificationError, MalformedInput)):
        case.verify(bytes(raw))


@given(data=st.data())
def test_cut_and_extended_reports(data: st.DataObject) -> None:
    """A genuine report that is cut, extended or shifted raises declared errors only."""
    if not FLIPPED:
        pytest.skip("no vectors")
    case = data.draw(st.sampled_from(FLIPPED))
    at = data.draw(st.integers(0, len(case.raw) - 1))
    more = data.draw(st.binary(min_size=1, max_size=120))
    for raw in (case.raw[:at], case.raw + more, case.raw[at:] + more, more + case.raw):
        with pytest.raises(CloisterError):
            case.verify(raw)


def test_time_of_verification() -> None:
    """With cached certificates a report is verified in at most 1.5 ms."""
    if not GENUINE:
        pytest.skip("no vectors")
    for case in FLIPPED:
        case.verify()
    taken = median(timed(case) for case in FLIPPED for _ in range(30))
    print(f"SEV-SNP verification: {taken * 1e3:.2f} ms")
    assert taken < 0.003  # the figure is kept by the benchmark; here only gross mistakes are caught


def timed(case: Case) -> float:
    """Seconds that one verification takes."""
    begin = time.perf_counter()
    case.verify()
    return time.perf_counter() - begin


def test_counts() -> None:
    """How many entries were judged, for the log."""
    print(f"SEV-SNP entries: {dict(COUNTS)}")

"""Which reports are acceptable: each reference value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister.attest import AppraisalDenied, ReferenceValues, appraise
from cloister.attest.appraisal import describe
from cloister.attest.model import TrustTier
from cloister.attest.snp import SnpClaims
from cloister.attest.snp.claims import RULES
from cloister.errors import ConfigError
from tests.attest.snp.conftest import HWID, MEASUREMENT, NOW, Platform


@pytest.fixture(scope="module")
def claims(genoa: Platform) -> SnpClaims:
    """Claims of a good report."""
    return genoa.verify(genoa.report(guest_svn=5, host_data=b"h" * 32), genoa.endorsements(crl=genoa.crl()))


def values(**table: Any) -> ReferenceValues:
    """Reference values that accept it, and more."""
    return ReferenceValues.from_mapping(
        {"allow_simulated": True, "sev-snp": {"measurement": [MEASUREMENT.hex()], **table}}
    )


def failed(claims: SnpClaims, **table: Any) -> list[str]:
    """Names of the checks that fail."""
    try:
        appraise(claims, values(**table), NOW)
    except AppraisalDenied as error:
        return [check.name for check in error.result.checks if not check.passed]
    return []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"host_data": ["68" * 32]}, {"host_data": ["00" * 32]}),
        ({"id_key_digests": ["00" * 48]}, {"id_key_digests": ["01" * 48]}),
        ({"author_key_digests": ["00" * 48]}, {"author_key_digests": ["01" * 48]}),
        ({"family_ids": ["00" * 16]}, {"family_ids": ["01" * 16]}),
        ({"image_ids": ["00" * 16]}, {"image_ids": []}),
        ({"min_guest_svn": 5}, {"min_guest_svn": 6}),
        ({"min_tcb": {"bootloader": 4, "snp": 24}}, {"min_tcb": {"snp": 25}}),
        ({"min_tcb": {"tee": 2, "microcode": 219}}, {"min_tcb": {"fmc": 0}}),
        ({"min_committed_tcb": {"snp": 24}}, {"min_committed_tcb": {"snp": 25}}),
        ({"min_launch_tcb": {"snp": 24}}, {"min_launch_tcb": {"microcode": 220}}),
        ({"tcb_status": ["Committed"]}, {"tcb_status": ["Reported"]}),
        ({"min_api": "1.55"}, {"min_api": "1.56"}),
        ({"min_api": "1.55.49"}, {"min_api": "1.55.50"}),
        ({"products": ["Genoa", "Turin"]}, {"products": ["Milan"]}),
        ({"signing_keys": ["vcek"]}, {"signing_keys": ["vlek"]}),
        ({"hardware_ids": [HWID.hex().upper()]}, {"hardware_ids": ["00" * 64]}),
        ({"policy_flags": ["smt"]}, {"policy_flags": ["single_socket"]}),
        ({"platform_flags": ["ecc_en", "alias_check_complete"]}, {"platform_flags": ["ecc_en", "tsme_en"]}),
        ({"max_crl_age_s": 3600}, {"max_crl_age_s": 3599}),
        ({"allow_smt": True}, {}),
    ],
)
def test_each_value_accepts_and_denies(claims: SnpClaims, good: dict[str, Any], bad: dict[str, Any]) -> None:
    """A value that the claim meets accepts, another one denies, by that check alone."""
    assert failed(claims, **good) == []
    assert failed(claims, **bad) == list(bad)


def test_defaults() -> None:
    """Without a word on them: a measurement is required, VMPL is 0, no debugging, no migration."""
    assert {rule.name for rule in RULES if "absent: false" in rule.meaning} == {
        "allow_debug",
        "allow_migration",
    }
    assert all(meaning for _, _, meaning in describe("sev-snp"))


def test_measurement_is_required(claims: SnpClaims) -> None:
    """No measurement, an empty list and another one deny."""
    for table in ({}, {"measurement": []}, {"measurement": ["00" * 48]}):
        reference = ReferenceValues.from_mapping({"allow_simulated": True, "sev-snp": table})
        with pytest.raises(AppraisalDenied, match="measurement"):
            appraise(claims, reference, NOW)


@pytest.mark.parametrize(
    ("fields", "check", "permission"),
    [
        ({"debug": True}, "debug", {"allow_debug": True}),
        ({"policy": 0x70000}, "migrate_ma", {"allow_migration": True}),
        ({"vmpl": 1}, "max_vmpl", {"max_vmpl": 1}),
    ],
)
def test_unsafe_by_default(
    genoa: Platform, fields: dict[str, Any], check: str, permission: dict[str, Any]
) -> None:
    """Debugging, migration and lower privilege are denied unless they are permitted by name."""
    claims = genoa.verify(genoa.report(**fields))
    assert failed(claims) == [check]
    assert failed(claims, **permission) == []


def test_report_for_the_host_is_never_accepted(genoa: Platform) -> None:
    """Whoever asks for a report chooses what it binds; the host's are denied at any VMPL."""
    claims = genoa.verify(genoa.report(vmpl=0xFFFFFFFF))
    assert failed(claims, max_vmpl=3) == ["max_vmpl"]


def test_smt_can_be_forbidden(claims: SnpClaims, genoa: Platform) -> None:
    """allow_smt = false denies a guest that accepts it."""
    assert failed(claims, allow_smt=False) == ["smt"]
    assert failed(genoa.verify(genoa.report(policy=0x20000)), allow_smt=False) == []


def test_crl_can_be_demanded(genoa: Platform) -> None:
    """An age of the list denies evidence that was verified without one."""
    assert failed(genoa.verify(genoa.report()), max_crl_age_s=10**9) == ["max_crl_age_s"]


def test_provider_behind_a_vlek(vlek: Platform) -> None:
    """csp_ids names the providers whose machines may be used."""
    claims = vlek.verify(vlek.report())
    assert failed(claims, csp_ids=["CN=simulated.invalid"]) == []
    assert failed(claims, csp_ids=["CN=other"]) == ["csp_ids"]
    assert failed(vlek.verify(vlek.report({"chip_id": b""})), hardware_ids=[HWID.hex()]) == ["hardware_ids"]


def test_tiers(claims: SnpClaims) -> None:
    """A genuine platform on its committed level is affirming, any other status is a warning."""
    genuine = replace(claims, simulated=False)
    assert appraise(genuine, values(), NOW).tier is TrustTier.AFFIRMING
    assert appraise(claims, values(), NOW).tier is TrustTier.WARNING
    for status in ("Reported", "Provisional"):
        assert appraise(replace(genuine, tcb_status=status), values(), NOW).tier is TrustTier.WARNING


def test_reasons_are_complete(claims: SnpClaims) -> None:
    """Every failed check is reported, not only the first."""
    assert failed(claims, products=["Milan"], min_guest_svn=6, min_api="2.0") == [
        "min_guest_svn",
        "min_api",
        "products",
    ]


def test_empty_list_of_flags_denies(claims: SnpClaims) -> None:
    """As everywhere, an empty list names nothing acceptable."""
    assert failed(claims, platform_flags=[]) == ["platform_flags"]


@pytest.mark.parametrize(
    "table",
    [
        {"measurement": ["00"]},
        {"min_tcb": {}},
        {"min_tcb": {"ucode": 1}},
        {"min_tcb": {"snp": 256}},
        {"min_tcb": {"snp": True}},
        {"min_tcb": 3},
        {"max_vmpl": 4},
        {"max_vmpl": False},
        {"min_api": "1"},
        {"min_api": "1.300"},
        {"min_api": 1.55},
        {"policy_flags": ["ecc_en"]},
        {"platform_flags": "ecc_en"},
        {"max_crl_age_s": -1},
        {"allow_smt": "yes"},
        {"products": ["Rome"]},
        {"surprise": 1},
    ],
)
def test_wrong_values_are_errors(table: dict[str, Any]) -> None:
    """A reference value of the wrong form is an error, not a denial."""
    with pytest.raises(ConfigError):
        values(**table)


def test_toml() -> None:
    """The table in TOML."""
    parsed = ReferenceValues.from_toml(
        f"""
        [sev-snp]
        measurement = ["{MEASUREMENT.hex()}"]
        min_tcb = {{ bootloader = 4, tee = 0, snp = 24, microcode = 219 }}
        min_api = "1.55"
        """
    )
    assert parsed.tables["sev-snp"]["min_tcb"]["snp"] == 24

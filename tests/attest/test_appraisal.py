"""Reference values and the appraisal of claims by them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import AppraisalDenied, ReferenceValues, TrustTier, appraise
from cloister.attest.appraisal import describe
from cloister.attest.dcap import TdxClaims
from cloister.attest.verifier import SCHEMES
from cloister.errors import ConfigError, PolicyDenied
from tests.attest.conftest import MR_CONFIG_ID, MR_TD, NOW

OTHER = "ab" * 48


def judge(claims: TdxClaims, *, now: datetime = NOW, **table: object) -> tuple[str, ...]:
    """Reasons for which the claims are denied, with ``mr_td`` as expected unless given."""
    values = ReferenceValues.from_mapping({"allow_simulated": True, "tdx": {"mr_td": [MR_TD.hex()], **table}})
    try:
        appraise(claims, values, now)
    except AppraisalDenied as denied:
        return denied.reasons
    return ()


@pytest.fixture
def genuine(claims: TdxClaims) -> TdxClaims:
    """The claims as they would be on hardware."""
    return replace(claims, simulated=False)


def test_accepted(claims: TdxClaims, genuine: TdxClaims) -> None:
    """Matching claims are affirming on hardware; on a simulated platform they are at best a warning."""
    values = ReferenceValues.from_mapping({"allow_simulated": True, "tdx": {"mr_td": [MR_TD.hex()]}})
    assert appraise(genuine, values, NOW).tier is TrustTier.AFFIRMING
    simulated = appraise(claims, values, NOW)
    assert (simulated.tier, simulated.simulated) == (TrustTier.WARNING, True)
    assert all(check.passed for check in simulated.checks)
    assert simulated.to_mapping()["simulated"] is True


def test_simulated_needs_permission(claims: TdxClaims) -> None:
    """A simulated platform is denied unless the reference values permit it."""
    values = ReferenceValues.from_toml(f'[tdx]\nmr_td = ["{MR_TD.hex()}"]')
    with pytest.raises(PolicyDenied, match="simulated") as caught:
        appraise(claims, values, NOW)
    assert caught.value.reasons == ("simulated: expected false, found true",)


@pytest.mark.parametrize("text", ["", "allow_simulated = true", "[tdx]", "[tdx]\nmr_td = []", "[sgx]"])
def test_empty_policy_denies(claims: TdxClaims, text: str) -> None:
    """Reference values that name no acceptable measurement accept nothing."""
    with pytest.raises(AppraisalDenied) as caught:
        appraise(replace(claims, simulated=False), ReferenceValues.from_toml(text), NOW)
    assert caught.value.result.tier is TrustTier.CONTRAINDICATED


def test_every_failed_check_is_reported(claims: TdxClaims) -> None:
    """All failures are listed, each with what was expected and found, long values cut."""
    reasons = judge(
        replace(claims, debug=True, tcb_status="OutOfDate"), mr_td=[OTHER], mr_config_id=["00" * 48]
    )
    assert [reason.split(":")[0] for reason in reasons] == ["mr_td", "mr_config_id", "tcb_status", "debug"]
    assert reasons[0] == f"mr_td: expected {OTHER[:12]}…, found {MR_TD.hex()[:12]}…"


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ({"mr_td": [OTHER]}, "mr_td"),
        ({"mr_config_id": [OTHER]}, "mr_config_id"),
        ({"mr_owner": [OTHER]}, "mr_owner"),
        ({"mr_owner_config": [OTHER]}, "mr_owner_config"),
        ({"rtmr0": [OTHER]}, "rtmr0"),
        ({"rtmr1": [OTHER]}, "rtmr1"),
        ({"rtmr2": [OTHER]}, "rtmr2"),
        ({"rtmr3": [OTHER]}, "rtmr3"),
        ({"rtmr3": []}, "rtmr3"),
        ({"mr_seam": [OTHER]}, "mr_seam"),
        ({"mr_signer_seam": [OTHER]}, "mr_signer_seam"),
        ({"mr_service_td": [OTHER]}, "mr_service_td"),
        ({"xfam": ["00" * 8]}, "xfam"),
        ({"tcb_status": []}, "tcb_status"),
        ({"tcb_status": ["OutOfDate"]}, "tcb_status"),
        ({"min_tee_tcb_svn": "04" + "00" * 15}, "min_tee_tcb_svn"),
        ({"min_tcb_evaluation_data_number": 22}, "min_tcb_evaluation_data_number"),
        ({"hardware_ids": ["00" * 16]}, "hardware_ids"),
        ({"hardware_ids": []}, "hardware_ids"),
        ({"fmspcs": ["000000000000"]}, "fmspcs"),
    ],
)
def test_each_value_denies(claims: TdxClaims, table: dict[str, Any], name: str) -> None:
    """Each field denies what does not match it, alone and by name."""
    assert [reason.split(":")[0] for reason in judge(claims, **table)] == [name]


def test_each_value_accepts(claims: TdxClaims) -> None:
    """Each field accepts what matches it, upper case included."""
    assert not judge(
        claims,
        mr_config_id=[OTHER, MR_CONFIG_ID.hex().upper()],
        rtmr0=["00" * 48],
        mr_seam=[claims.mr_seam.hex()],
        xfam=[claims.xfam.hex()],
        min_tee_tcb_svn="03" + "00" * 15,
        min_tcb_evaluation_data_number=21,
        allowed_advisory_ids=[],
        hardware_ids=[claims.hardware_id.upper()],
        fmspcs=["90C06F000000"],
        max_collateral_age_s=3600,
    )


@pytest.mark.parametrize(
    ("bit", "value", "name", "switch"),
    [
        (28, 0, "sept_ve", "allow_sept_ve"),
        (29, 1, "migratable", "allow_migration"),
        (17, 1, "service_td_extension", "allow_service_td_extension"),
        (30, 1, "pks", "allow_pks"),
        (31, 1, "key_locker", "allow_key_locker"),
    ],
)
def test_attributes(claims: TdxClaims, bit: int, value: int, name: str, switch: str) -> None:
    """Attributes that weaken a TD are denied by default, and permitted one by one."""
    attributes = int.from_bytes(claims.td_attributes, "little") & ~(1 << bit) | value << bit
    weak = replace(claims, td_attributes=attributes.to_bytes(8, "little"))
    assert [reason.split(":")[0] for reason in judge(weak)] == [name]
    assert not judge(weak, **{switch: True})


def test_debug_needs_permission_and_stays_a_warning(genuine: TdxClaims) -> None:
    """A debug TD is denied by default; permitted, it is a warning."""
    debug = replace(genuine, debug=True)
    assert judge(debug) == ("debug: expected false, found true",)
    values = ReferenceValues.from_mapping({"tdx": {"mr_td": [MR_TD.hex()], "allow_debug": True}})
    assert appraise(debug, values, NOW).tier is TrustTier.WARNING


def test_tolerated_tcb_status_is_a_warning(genuine: TdxClaims) -> None:
    """A TCB status that the reference values tolerate is accepted with a warning."""
    table = {"mr_td": [MR_TD.hex()], "tcb_status": ["UpToDate", "SWHardeningNeeded"]}
    values = ReferenceValues.from_mapping({"tdx": table})
    tolerated = replace(genuine, tcb_status="SWHardeningNeeded", advisory_ids=("INTEL-SA-00615",))
    assert appraise(tolerated, values, NOW).tier is TrustTier.WARNING


def test_advisories(claims: TdxClaims) -> None:
    """Only listed advisories may be open; absent, they are not looked at."""
    open_ones = replace(claims, advisory_ids=("INTEL-SA-00615", "INTEL-SA-00837"))
    assert not judge(open_ones)
    assert judge(open_ones, allowed_advisory_ids=["INTEL-SA-00615"]) == (
        "allowed_advisory_ids: expected only INTEL-SA-00615, found INTEL-SA-00837",
    )
    assert judge(open_ones, allowed_advisory_ids=[])


def test_collateral_age(claims: TdxClaims) -> None:
    """Collateral that is older than allowed is denied."""
    later = NOW + timedelta(hours=2)
    assert not judge(claims, now=later, max_collateral_age_s=7200)
    assert judge(claims, now=later, max_collateral_age_s=7199)


def test_service_td(claims: TdxClaims) -> None:
    """A service TD is denied unless it is listed."""
    bound = replace(claims, mr_service_td=b"\xab" * 48)
    assert [reason.split(":")[0] for reason in judge(bound)] == ["mr_service_td"]
    assert not judge(bound, mr_service_td=[OTHER])


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "[tdx2]",
        "tdx = 1",
        "allow_simulated = 1",
        "[tdx]\nmrtd = []",
        '[tdx]\nmr_td = "ab"',
        '[tdx]\nmr_td = ["ab"]',
        '[tdx]\nmr_td = ["zz"]',
        "[tdx]\nmr_td = [1]",
        '[tdx]\ntcb_status = ["Fine"]',
        "[tdx]\nallow_debug = 1",
        "[tdx]\nmin_tcb_evaluation_data_number = -1",
        "[tdx]\nmin_tcb_evaluation_data_number = true",
        "[tdx]\nmin_tee_tcb_svn = 3",
        '[tdx]\nmin_tee_tcb_svn = "03"',
        "[tdx",
    ],
)
def test_mistakes_are_errors(text: str) -> None:
    """Unknown fields, wrong types, lengths and values are errors, never ignored."""
    with pytest.raises(ConfigError):
        ReferenceValues.from_toml(text)


def test_mistakes_are_helped() -> None:
    """The error about a mistyped field proposes the right one."""
    with pytest.raises(ConfigError) as caught:
        ReferenceValues.from_toml("[tdx]\nmrtd = []")
    assert "mr_td" in caught.value.hint


def test_from_a_file(tmp_path: Path, claims: TdxClaims) -> None:
    """A path, as Path or as string, is read; one that is not there is an error that names it."""
    path = tmp_path / "reference.toml"
    path.write_text(f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n')
    for source in (path, str(path)):
        assert appraise(claims, ReferenceValues.from_toml(source), NOW).tier is TrustTier.WARNING
    with pytest.raises(ConfigError, match="absent"):
        ReferenceValues.from_toml(tmp_path / "absent.toml")


@given(
    st.dictionaries(
        st.sampled_from([rule.name for rule in SCHEMES["tdx"].rules]),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text() | st.integers()),
    )
)
def test_any_table_raises_only_config_errors(table: dict[str, Any]) -> None:
    """Whatever a table holds, nothing but ConfigError is raised."""
    try:
        ReferenceValues.from_mapping({"tdx": table})
    except ConfigError:
        return


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_every_field_is_documented(scheme: str) -> None:
    """Each field says what it is, how it is compared and what absent means."""
    for name, about, meaning in describe(scheme):
        assert name
        assert about
        assert "absent" in meaning


def test_verdict_has_its_time(genuine: TdxClaims, reference_values: ReferenceValues) -> None:
    """The verdict says when it was reached."""
    assert appraise(genuine, reference_values, NOW).evaluated_at == NOW.astimezone(UTC)

"""The trust vector of a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.attest import AttestationResult, Check, ReferenceValues, appraise
from cloister.attest.ar4si import NAMES, aspect_of, tier_of_claim, trust_vector, worst_tier
from cloister.attest.dcap import TdxClaims
from cloister.attest.model import TrustTier
from cloister.attest.verifier import SCHEMES
from tests.attest.conftest import NOW


@pytest.fixture
def result(claims: TdxClaims, reference_values: ReferenceValues) -> AttestationResult:
    """A verdict on hardware, not on a simulation."""
    genuine = replace(claims, simulated=False)
    return appraise(genuine, ReferenceValues.from_mapping({"tdx": {"mr_td": [claims.mr_td.hex()]}}), NOW)


def failing(result: AttestationResult, name: str) -> dict[str, int]:
    """The vector of the same verdict with one more check, which failed."""
    return trust_vector(replace(result, checks=(*result.checks, Check(name, "x", "y", False))))


def test_accepted_hardware(result: AttestationResult) -> None:
    """An affirming verdict has an affirming vector, silent on what nothing spoke of."""
    vector = trust_vector(result)
    assert tuple(vector) == NAMES
    assert (vector["hardware"], vector["executables"], vector["configuration"]) == (2, 3, 2)
    assert (vector["runtime-opaque"], vector["instance-identity"], vector["sourced-data"]) == (2, 0, 0)
    assert worst_tier(vector) == result.tier == TrustTier.AFFIRMING


@pytest.mark.parametrize(
    ("check", "aspect", "value"),
    [
        ("mr_td", "executables", 33),
        ("rtmr3", "executables", 33),
        ("hardware_ids", "instance-identity", 97),
        ("tcb_status", "hardware", 96),
        ("mr_config_id", "configuration", 96),
        ("debug", "runtime-opaque", 96),
        ("simulated", "runtime-opaque", 96),
    ],
)
def test_a_failed_check_shows_in_its_aspect(
    result: AttestationResult, check: str, aspect: str, value: int
) -> None:
    """What is not acceptable is said of the aspect that the check belongs to."""
    assert failing(result, check)[aspect] == value


@pytest.mark.parametrize(
    ("change", "aspects"),
    [
        ({"tcb_status": "OutOfDate"}, {"hardware"}),
        ({"debug": True}, {"configuration", "runtime-opaque"}),
        ({"simulated": True}, {"hardware", "runtime-opaque"}),
    ],
)
def test_tolerated_weaknesses_warn(
    result: AttestationResult, change: dict[str, object], aspects: set[str]
) -> None:
    """What reference values tolerate is a warning in its aspect, and nowhere else."""
    vector = trust_vector(replace(result, claims=replace(result.claims, **change)))
    assert {name for name, value in vector.items() if value == 32} == aspects


def test_simulated_and_denied(result: AttestationResult) -> None:
    """Hardware that is a simulation and was not to be one is not recognized."""
    simulated = replace(result, claims=replace(result.claims, simulated=True))
    assert failing(simulated, "simulated")["hardware"] == 97


def test_nothing_is_said_of_memory_without_a_tee(result: AttestationResult) -> None:
    """A TPM says what was started, not that memory is out of reach."""
    vector = trust_vector(replace(result, claims=replace(result.claims, scheme="tpm")))
    assert vector["runtime-opaque"] == 0


@pytest.mark.parametrize(
    ("value", "tier"),
    [
        *((0, 0), (1, 0), (-1, 0), (2, 2), (31, 2), (-2, 2), (-32, 2)),
        *((32, 32), (95, 32), (-33, 32), (-96, 32), (96, 96), (127, 96), (-97, 96), (-128, 96)),
    ],
)
def test_tiers_of_numbers(value: int, tier: int) -> None:
    """The ranges of the draft, with their edges."""
    assert tier_of_claim(value) == tier


def test_every_rule_belongs_somewhere() -> None:
    """Measurements, registers and TCB of every scheme are not taken for configuration."""
    configuration = {
        rule.name
        for scheme in SCHEMES.values()
        for rule in scheme.rules
        if aspect_of(getattr(rule, "property_name", rule.name)) == "configuration"
    }
    assert not {name for name in configuration if name.startswith(("mr_td", "rtmr", "pcr", "measure", "tcb"))}
    assert {"mr_config_id", "host_data", "policy_flags", "secure_boot"} <= configuration

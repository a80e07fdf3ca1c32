"""What a caller demands of a service beyond its platform: met, or refused with the name of the check."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import ReferenceValues
from cloister.attest.demands import ServiceDemands
from cloister.attest.service import LoadedModel, ServiceIdentity
from cloister.errors import ConfigError, PolicyDenied

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32
POLICY = "06" * 48


def model(name: str, version: str, digest: str, signer: str) -> LoadedModel:
    """One loaded model."""
    return LoadedModel(name=name, version=version, container_digest=digest, signer=signer, sandbox="none")


def identity(*models: LoadedModel) -> ServiceIdentity:
    """A verified service with these models; two by default."""
    return ServiceIdentity(
        tls_spki=b"t",
        ohttp_key_config=b"k",
        settings_digest=bytes(48),
        policy_digest=bytes.fromhex(POLICY),
        callers_digest=bytes(48),
        models=models or (model("xray", "1", A, "ed25519:me="), model("xray", "2", B, "ed25519:me=")),
    )


@pytest.mark.parametrize(
    "demands",
    [
        {},
        {"model_digests": (A, B)},
        {"model_digests": (f"xray={A}", f"xray={B}")},
        {"model_digests": (f"xray/2={B}",)},
        {"model_signers": ("ed25519:me=",)},
        {"model_signers": ("xray=ed25519:me=",)},
        {"policy_digests": ("00" * 48, POLICY)},
        {"settings_digests": ("00" * 48,)},
    ],
)
def test_met(demands: Mapping[str, Sequence[str]]) -> None:
    """What is demanded is so: nothing happens."""
    ServiceDemands(**{name: tuple(values) for name, values in demands.items()}).check(identity())


@pytest.mark.parametrize(
    ("demands", "check"),
    [
        ({"model_digests": (A,)}, "model digest: xray 2 has bbbb"),
        ({"model_digests": (f"xray={A}",)}, "model digest: xray 2"),
        ({"model_digests": (f"xray/2={A}",)}, "model digest: xray 2"),
        ({"model_digests": (f"ecg={A}",)}, "model digest: ecg is not loaded"),
        ({"model_digests": (f"xray/3={A}",)}, "model digest: xray/3 is not loaded"),
        ({"model_digests": (A, B, f"xray/1={C}")}, "model digest: xray 1"),
        ({"model_signers": ("ed25519:you=",)}, "model signer: xray 1"),
        ({"policy_digests": ("00" * 48,)}, "policy digest: it is 0606"),
        ({"settings_digests": (POLICY,)}, "settings digest: it is 0000"),
    ],
)
def test_not_met(demands: Mapping[str, Sequence[str]], check: str) -> None:
    """What is not so is refused, and the reason names the check."""
    with pytest.raises(PolicyDenied) as denied:
        ServiceDemands(**{name: tuple(values) for name, values in demands.items()}).check(identity())
    assert check in denied.value.message
    assert any(check in reason for reason in denied.value.reasons)


def test_no_model_at_all() -> None:
    """A service without a model meets no demand on models."""
    bare = ServiceIdentity(
        tls_spki=b"t",
        ohttp_key_config=b"k",
        settings_digest=bytes(48),
        policy_digest=bytes(48),
        callers_digest=bytes(48),
        models=(),
    )
    with pytest.raises(PolicyDenied, match="no model"):
        ServiceDemands(model_digests=(A,)).check(bare)


@pytest.mark.parametrize(
    "table",
    [
        {"model_digest": [A]},
        {"model_digests": []},
        {"model_digests": A},
        {"model_digests": [A.upper()]},
        {"model_digests": ["xray="]},
        {"model_digests": [7]},
        {"model_signers": [""]},
        {"policy_digests": [A]},
        {"policy_digests": [f"xray={POLICY}"]},
    ],
)
def test_reference_values_that_are_none(table: dict[str, Any]) -> None:
    """A demand of another form would never be met, or always: an error."""
    with pytest.raises(ConfigError):
        ReferenceValues.from_mapping({"service": table})


def test_reference_values() -> None:
    """Demands are in the file of reference values, and a program's own win over them."""
    values = ReferenceValues.from_toml(f'[service]\nmodel_digests = ["{A}"]\npolicy_digests = ["{POLICY}"]\n')
    assert values.service == ServiceDemands(model_digests=(A,), policy_digests=(POLICY,))
    narrowed = values.demanding(model_digest=B, model_signer=["x", "y"]).service
    assert narrowed == ServiceDemands(model_digests=(B,), model_signers=("x", "y"), policy_digests=(POLICY,))
    with pytest.raises(ConfigError):
        values.demanding(policy_digest="short")


@given(st.text(max_size=200))
def test_garbage(text: str) -> None:
    """Any text is a demand or an error of configuration."""
    for name in ("model_digests", "model_signers", "policy_digests", "settings_digests"):
        try:
            demands = ServiceDemands(**{name: (text,)})
        except ConfigError:
            continue
        with contextlib.suppress(PolicyDenied):
            demands.check(identity())

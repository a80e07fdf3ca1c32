"""Service evidence: one bundle for one caller's nonce."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.attest import ReferenceValues
from cloister.attest.model import Endorsements, Evidence
from cloister.attest.service import LoadedModel, ServiceIdentity, VerifiedService, make_bundle, verify_bundle
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import (
    BindingMismatch,
    CloisterError,
    MalformedInput,
    PolicyDenied,
    UntrustedRoot,
    VerificationError,
)
from tests.attest.conftest import MR_TD, NOW

NONCE = bytes(range(32))
MODEL = LoadedModel(
    name="digits", version="1.0", container_digest="ab" * 32, signer="ed25519:x", sandbox="none"
)
IDENTITY = ServiceIdentity(
    tls_spki=b"spki",
    ohttp_key_config=b"key config",
    settings_digest=b"\x05" * 48,
    policy_digest=b"\x06" * 48,
    callers_digest=b"\x07" * 48,
    models=(MODEL,),
)


class PlatformAttester:
    """The test platform as an Attester."""

    scheme = "tdx"

    def __init__(self, platform: SimulatedPlatform) -> None:
        self.platform = platform

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A quote with the expected measurement."""
        return Evidence("tdx", self.platform.quote(report_data, mr_td=MR_TD))

    def get_endorsements(self) -> Endorsements | None:
        """The platform's collateral."""
        return self.platform.endorsements(NOW)


@pytest.fixture
def bundle(platform: SimulatedPlatform) -> bytes:
    """A good bundle."""
    return make_bundle(PlatformAttester(platform), IDENTITY, NONCE)


def check(
    raw: bytes, platform: SimulatedPlatform, reference_values: ReferenceValues, **more: Any
) -> VerifiedService:
    """Verify as a caller who trusts the platform."""
    arguments: dict[str, Any] = {"nonce": NONCE, "roots": [platform.root], "now": NOW} | more
    return verify_bundle(raw, reference_values=reference_values, **arguments)


def change(raw: bytes, member: str, value: object, *, inside: str = "") -> bytes:
    """The bundle with one member replaced."""
    document = json.loads(raw)
    (document[inside] if inside else document)[member] = value
    return json.dumps(document).encode()


def test_good_bundle(bundle: bytes, platform: SimulatedPlatform, reference_values: ReferenceValues) -> None:
    """A bundle gives back the identity that was put in, with the verdict."""
    verified = check(bundle, platform, reference_values)
    assert verified.identity == IDENTITY
    assert verified.result.simulated


def test_own_endorsements_come_first(
    bundle: bytes, platform: SimulatedPlatform, reference_values: ReferenceValues
) -> None:
    """Collateral of the caller is used instead of the bundle's; without either nothing is verified."""
    bare = change(bundle, "endorsements", None)
    own = platform.endorsements(NOW)
    assert check(bare, platform, reference_values, endorsements=own).identity == IDENTITY
    with pytest.raises(MalformedInput, match="collateral"):
        check(bare, platform, reference_values)


def test_another_nonce(bundle: bytes, platform: SimulatedPlatform, reference_values: ReferenceValues) -> None:
    """Evidence for another caller's nonce is refused; so is one whose nonce was rewritten."""
    with pytest.raises(BindingMismatch, match="nonce"):
        check(bundle, platform, reference_values, nonce=bytes(32))
    forged = change(bundle, "nonce", base64.b64encode(bytes(32)).decode(), inside="runtime-data")
    with pytest.raises(BindingMismatch, match="report_data"):
        check(forged, platform, reference_values, nonce=bytes(32))


@pytest.mark.parametrize("length", [0, 15, 65])
def test_nonce_length(platform: SimulatedPlatform, length: int) -> None:
    """A nonce has 16 to 64 bytes."""
    with pytest.raises(MalformedInput, match="nonce"):
        make_bundle(PlatformAttester(platform), IDENTITY, bytes(length))


@pytest.mark.parametrize(
    "member",
    ["tls-key", "ohttp-key-config", "settings-digest", "policy-digest", "callers-digest", "models-digest"],
)
def test_every_member_is_bound(
    bundle: bytes, platform: SimulatedPlatform, reference_values: ReferenceValues, member: str
) -> None:
    """A changed key or digest is not what the evidence speaks of."""
    with pytest.raises(BindingMismatch):
        check(change(bundle, member, "00" * 48, inside="runtime-data"), platform, reference_values)


@pytest.mark.parametrize("member", list(LoadedModel.__dataclass_fields__))
def test_models_are_bound(
    bundle: bytes, platform: SimulatedPlatform, reference_values: ReferenceValues, member: str
) -> None:
    """A changed field of a model, and a model that is left out, are refused."""
    document = json.loads(bundle)
    document["models"][0][member] += "x"
    with pytest.raises(BindingMismatch, match="models"):
        check(json.dumps(document).encode(), platform, reference_values)
    with pytest.raises(BindingMismatch, match="models"):
        check(change(bundle, "models", []), platform, reference_values)


def test_unacceptable(bundle: bytes, platform: SimulatedPlatform) -> None:
    """Genuine evidence of another measurement is denied."""
    other = ReferenceValues.from_mapping({"allow_simulated": True, "tdx": {"mr_td": ["00" * 48]}})
    with pytest.raises(PolicyDenied, match="mr_td"):
        check(bundle, platform, other)


def test_untrusted(bundle: bytes, platform: SimulatedPlatform, reference_values: ReferenceValues) -> None:
    """Without the simulated root a bundle is refused, whatever the reference values permit."""
    with pytest.raises(UntrustedRoot):
        check(bundle, platform, reference_values, roots=None)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("scheme", "none"),
        ("scheme", 7),
        ("evidence", "not base64!"),
        ("evidence", None),
        ("endorsements", []),
        ("endorsements", {}),
        ("runtime-data", []),
        ("runtime-data", {}),
        ("models", {}),
        ("models", [1]),
        ("models", [{"name": "x"}]),
        ("more", 1),
    ],
)
def test_malformed_members(
    bundle: bytes,
    platform: SimulatedPlatform,
    reference_values: ReferenceValues,
    member: str,
    value: object,
) -> None:
    """A bundle of another form is malformed."""
    with pytest.raises(MalformedInput):
        check(change(bundle, member, value), platform, reference_values)


def test_too_large(platform: SimulatedPlatform, reference_values: ReferenceValues) -> None:
    """A bundle has an upper bound."""
    with pytest.raises(MalformedInput, match="at most"):
        check(b" " * (1 << 20) + b"{}", platform, reference_values)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_mutations_raise_only_declared_errors(
    bundle: bytes, platform: SimulatedPlatform, reference_values: ReferenceValues, data: st.DataObject
) -> None:
    """Any splice of a bundle is refused with a declared error, or changes nothing that counts."""
    begin = data.draw(st.integers(0, len(bundle)))
    end = data.draw(st.integers(begin, min(len(bundle), begin + 40)))
    changed = bundle[:begin] + data.draw(st.binary(max_size=40)) + bundle[end:]
    try:
        verified = check(changed, platform, reference_values)
    except (MalformedInput, VerificationError, PolicyDenied):
        return
    assert verified.identity == IDENTITY


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["scheme", "evidence", "endorsements", "runtime-data", "models"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_malformed(document: object) -> None:
    """Whatever JSON comes, nothing but a declared error is raised."""
    with pytest.raises(CloisterError):
        verify_bundle(
            json.dumps(document).encode(),
            nonce=NONCE,
            reference_values=ReferenceValues.from_mapping({}),
            now=NOW,
        )


def test_two_callers_get_two_bundles(platform: SimulatedPlatform) -> None:
    """The runtime data differs in the nonce only."""
    one, two = IDENTITY.runtime_data(bytes(16)), IDENTITY.runtime_data(b"\x01" * 16)
    assert {name for name in one if one[name] != two[name]} == {"nonce"}
    assert replace(IDENTITY, models=()).runtime_data(bytes(16)) != one


@pytest.mark.parametrize(
    ("sandbox", "confined"),
    [
        ("none", False),
        ("unknown", False),
        ("", False),
        ("network=seccomp; files=landlock:7; processes=others; syscalls=allow-list; memory=none", True),
        ("network=seccomp; files=none; processes=others; syscalls=allow-list", False),
        ("network=; files=mounts; syscalls=allow-list", False),
        ("network=seccomp; files=mounts; syscalls=allow-list | none", False),
    ],
)
def test_sandbox_can_be_required(
    sandbox: str, confined: bool, platform: SimulatedPlatform, reference_values: ReferenceValues
) -> None:
    """A caller who does not trust the model's author refuses a server that does not confine its code."""
    identity = replace(IDENTITY, models=(replace(MODEL, sandbox=sandbox),))
    raw = make_bundle(PlatformAttester(platform), identity, NONCE)
    strict = replace(reference_values, require_sandbox=True)
    check(raw, platform, reference_values)
    if confined:
        check(raw, platform, strict)
    else:
        with pytest.raises(PolicyDenied, match=r"digits 1\.0"):
            check(raw, platform, strict)

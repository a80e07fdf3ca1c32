"""The threats that concern keys, where no other test of this folder shows them at a whole broker."""

from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cloister
from cloister.attest.simulated import SimulatedPlatform
from cloister.settings import KeysSettings
from tests.kbs.broker_process import REFERENCE, Run, RunningBroker
from tests.kbs.test_server import last_entry, variant

PACKAGE = Path(cloister.__file__).parent
PATH = "models/key/digits"


def attest(broker: RunningBroker, **quote: Any) -> Any:
    """The answer to one honest attestation."""
    with broker.http() as http:
        run = Run(broker, http)
        run.auth()
        return run.attest(run.body(**quote))


def set_collateral(broker: RunningBroker, endorsements: Any) -> None:
    """Have the broker verify with other collateral from the next request on."""
    Path(broker.settings.collateral).write_bytes(msgspec.json.encode(endorsements.to_mapping()))


def test_only_listed_hardware(own_broker: RunningBroker, tmp_path: Path) -> None:
    """Where the owner lists machines, evidence of another genuine machine with the same code is refused."""
    found = attest(own_broker)
    assert found.status_code == 200
    with own_broker.http() as http:
        run = Run(own_broker, http)
        run.auth()
        run.attest(run.body())
        run.get(PATH)
    hardware = last_entry(own_broker)["claims"]["hardware_id"]
    own_broker.reference.write_text(f'{REFERENCE}hardware_ids = ["{"00" * 16}"]\n')
    refused = attest(own_broker)
    assert (refused.status_code, variant(refused)) == (401, "AttestationError")
    assert "hardware_ids" in refused.json()["detail"]
    own_broker.reference.write_text(f'{REFERENCE}hardware_ids = ["{hardware}"]\n')
    assert attest(own_broker).status_code == 200


@pytest.mark.parametrize("status", ["OutOfDate", "OutOfDateConfigurationNeeded", "SWHardeningNeeded"])
def test_an_old_platform_is_refused(own_broker: RunningBroker, status: str) -> None:
    """A TCB that is behind gets no token unless the reference values name it, and then still no key."""
    now = datetime.now(UTC)
    set_collateral(own_broker, own_broker.platform.endorsements(now, tcb_status=status))
    refused = attest(own_broker)
    assert (refused.status_code, variant(refused)) == (401, "AttestationError")
    assert last_entry(own_broker)["kind"] == "refusal"
    own_broker.reference.write_text(f'{REFERENCE}tcb_status = ["UpToDate", "{status}"]\n')
    with own_broker.http() as http:
        run = Run(own_broker, http)
        run.auth()
        assert run.attest(run.body()).status_code == 200
        answer = run.get(PATH)
        assert variant(answer) == "PolicyDeny"
        assert "tcb_status" in answer.json()["detail"]


def test_a_revoked_platform_is_refused(own_broker: RunningBroker) -> None:
    """A machine whose certificate the vendor has revoked attests no more."""
    set_collateral(own_broker, own_broker.platform.endorsements(datetime.now(UTC), revoke_pck=True))
    refused = attest(own_broker)
    assert (refused.status_code, variant(refused)) == (401, "AttestationError")
    assert "revoked" in refused.json()["detail"]


def test_old_collateral_is_refused(own_broker: RunningBroker) -> None:
    """Collateral that is still valid but older than the owner allows verifies nobody."""
    weeks_ago = datetime.now(UTC).replace(microsecond=0) - timedelta(days=20)
    set_collateral(own_broker, own_broker.platform.issuer.issue(weeks_ago))
    assert attest(own_broker).status_code == 200
    own_broker.reference.write_text(f"{REFERENCE}max_collateral_age_s = {14 * 86400}\n")
    refused = attest(own_broker)
    assert (refused.status_code, variant(refused)) == (401, "AttestationError")
    assert "max_collateral_age_s" in refused.json()["detail"]


def test_expired_collateral_is_refused(own_broker: RunningBroker) -> None:
    """Collateral that has expired verifies nobody, whatever the reference values say."""
    long_ago = datetime.now(UTC).replace(microsecond=0) - timedelta(days=800)
    set_collateral(own_broker, own_broker.platform.issuer.issue(long_ago))
    assert attest(own_broker).status_code == 401


@pytest.mark.parametrize("text", ["", "// nothing\n", "forbid (principal, action, resource);"])
def test_an_empty_policy_releases_nothing(own_broker: RunningBroker, text: str) -> None:
    """A TEE that is acceptable in every way gets no key that no policy permits."""
    own_broker.policy.write_text(text)
    with own_broker.http() as http:
        run = Run(own_broker, http)
        run.auth()
        assert run.attest(run.body()).status_code == 200
        answer = run.get(PATH)
    assert (answer.status_code, variant(answer)) == (401, "PolicyDeny")


def test_no_verification_answers_yes_or_no() -> None:
    """Nothing that verifies, checks or appraises returns a boolean that a caller could overlook."""
    found = []
    for part in ("attest", "crypto", "seal", "kbs"):
        for path in sorted((PACKAGE / part).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    name = node.name.lstrip("_")
                    verifies = name.startswith(("verify", "check_", "appraise"))
                    returns = "" if node.returns is None else ast.unparse(node.returns)
                    if verifies and returns in ("bool", "bool | None"):
                        found.append(f"{path.name}: {node.name}")
    # These raise for a revoked certificate too; they return whether every one was asked about.
    assert found == ["ocsp.py: check_revocation", "verify.py: _check_revocation"]


def test_evidence_for_another_broker_is_refused(
    broker: RunningBroker, platform: SimulatedPlatform, tmp_path: Path
) -> None:
    """Evidence that a TEE made for one broker, relayed to another one, does not fit that one's nonce."""
    other = RunningBroker(tmp_path, platform)
    try:
        with broker.http() as here, other.http() as there:
            asked, relayed = Run(broker, here), Run(other, there)
            asked.auth()
            relayed.auth()
            refused = relayed.attest(asked.body())
            assert (refused.status_code, variant(refused)) == (401, "AttestationError")
            token = asked.attest(asked.body()).json()["token"]
            assert variant(relayed.get(PATH, token)) == "TokenVerifierError"
    finally:
        other.stop()


def test_production_defaults_accept_no_simulation() -> None:
    """No root of a simulation, no sample evidence, no reference values: all must be asked for."""
    settings = KeysSettings()
    assert (settings.simulated_root, settings.allow_sample, settings.reference_values) == ("", False, "")

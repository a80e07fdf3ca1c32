"""Tests of ``cloister.serve.remote.proof``: who is believed, and above all who is not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from cloister.attest.model import TrustTier
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import BadSignature, BindingMismatch, MalformedInput, PolicyDenied, VerificationError
from cloister.serve.remote.messages import VERSION, Hello, Proof, Role
from cloister.serve.remote.proof import Demands, Peer, Transcript, check_hello, judge_proof, make_proof
from tests.serve.remote.sides import attester, credentials, demands, make_platform, transcript, values

TOKEN = b"0123456789abcdef0123456789abcdef"
ROLES: list[Role] = ["frontend", "worker"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    """One platform for all tests."""
    return make_platform(tmp_path_factory.mktemp("platform") / "tee")


def judge(proof: Proof, wanted: Demands, *, role: Role = "worker", seen: Transcript | None = None) -> Peer:
    """What the other side thinks of it."""
    return judge_proof(proof, seen or transcript(), role, wanted, datetime.now(UTC))


@pytest.mark.parametrize("role", ROLES)
def test_same_code_is_believed(platform: SimulatedPlatform, role: Role) -> None:
    """A side with the same measurement, bound to this connection, is believed; simulation shows."""
    proof = make_proof(transcript(), role, credentials(attester(platform)))
    peer = judge(proof, demands(platform), role=role)
    assert peer.result is not None
    assert (peer.result.tier, peer.result.simulated) == (TrustTier.WARNING, True)


def test_unattested(platform: SimulatedPlatform) -> None:
    """A side that shows no evidence is refused, whatever else it knows."""
    proof = make_proof(transcript(), "worker", credentials(None, token=TOKEN))
    with pytest.raises(PolicyDenied, match="showed no evidence"):
        judge(proof, demands(platform, token=TOKEN))


def test_simulated_is_refused_by_default(platform: SimulatedPlatform) -> None:
    """Without the simulated root its evidence is not genuine; with it alone it is not acceptable."""
    proof = make_proof(transcript(), "worker", credentials(attester(platform)))
    with pytest.raises(VerificationError):
        judge(proof, demands(platform, simulated_root=None))
    strict = values(mr_td=["00" * 48])
    with pytest.raises(PolicyDenied, match="simulated"):
        judge(proof, demands(platform, reference_values=type(strict)(strict.tables)))


def test_other_code(platform: SimulatedPlatform) -> None:
    """Another measurement is refused, and the reason names the field."""
    proof = make_proof(transcript(), "worker", credentials(attester(platform, measurement=bytes(48))))
    with pytest.raises(PolicyDenied, match="mr_td"):
        judge(proof, demands(platform))


def test_outdated_platform(platform: SimulatedPlatform) -> None:
    """A platform whose vendor calls it out of date is refused unless the reference values say otherwise."""
    proof = make_proof(transcript(), "worker", credentials(attester(platform, aged=True)))
    with pytest.raises(PolicyDenied, match="OutOfDate"):
        judge(proof, demands(platform))
    lenient = values(mr_td=[bytes(range(48)).hex()], tcb_status=["OutOfDate"])
    assert judge(proof, demands(platform, reference_values=lenient)).result is not None


@pytest.mark.parametrize(
    "seen",
    [
        {"frontend_nonce": b"F" * 32},
        {"worker_nonce": b"W" * 32},
        {"frontend_spki": b"key of somebody between"},
        {"worker_spki": b"key of somebody between"},
        {"mode": "open"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_replay_and_relay(platform: SimulatedPlatform, seen: dict[str, Any]) -> None:
    """Evidence of another connection is refused: another nonce (replay), another TLS key (relay)."""
    proof = make_proof(transcript(), "worker", credentials(attester(platform)))
    with pytest.raises(BindingMismatch, match="another connection"):
        judge(proof, demands(platform), seen=transcript(**seen))


def test_reflection(platform: SimulatedPlatform) -> None:
    """A side cannot be shown its own evidence: the role is bound."""
    proof = make_proof(transcript(), "frontend", credentials(attester(platform)))
    with pytest.raises(BindingMismatch):
        judge(proof, demands(platform), role="worker")


def test_changed_settings(platform: SimulatedPlatform) -> None:
    """The digest of the settings and what confines handlers are bound, and the latter must be alike."""
    own = credentials(attester(platform))
    proof = make_proof(transcript(), "worker", own)
    for change in ({"settings_digest": bytes(48)}, {"confinement": "{}"}):
        with pytest.raises(BindingMismatch):
            judge(msgspec.structs.replace(proof, **change), demands(platform))
    laxer = credentials(attester(platform), confinement='{"mode":"protected","sandbox":"off"}')
    with pytest.raises(PolicyDenied, match="confines models by"):
        judge(make_proof(transcript(), "worker", laxer), demands(platform))


def test_damaged_proofs(platform: SimulatedPlatform) -> None:
    """Whatever comes instead of a proof raises one of the declared errors."""
    proof = make_proof(transcript(), "worker", credentials(attester(platform)))
    for change in (
        {"scheme": "abacus"},
        {"scheme": "sev-snp"},
        {"evidence": b"\0" * 5000},
        {"evidence": proof.evidence[:-1]},
        {"endorsements": b"{}"},
        {"endorsements": b"[" * 100_000},
        {"endorsements": b"\xff"},
    ):
        with pytest.raises((MalformedInput, VerificationError)):
            judge(msgspec.structs.replace(proof, **change), demands(platform))


def test_token_in_open_mode() -> None:
    """Open mode believes whoever proves the token for this connection, and nobody without one."""
    seen = transcript(mode="open")
    proof = make_proof(seen, "worker", credentials(None, token=TOKEN))
    assert TOKEN not in proof.token
    assert judge(proof, demands(None, token=TOKEN), seen=seen).result is None
    with pytest.raises(BadSignature):
        judge(proof, demands(None, token=TOKEN[::-1]), seen=seen)
    with pytest.raises(BadSignature):
        judge(proof, demands(None, token=TOKEN), seen=transcript(mode="open", worker_spki=b"between"))
    with pytest.raises(BadSignature):
        judge(proof, demands(None, token=TOKEN), role="frontend", seen=seen)
    with pytest.raises(PolicyDenied, match="showed no join token"):
        judge(make_proof(seen, "worker", credentials(None)), demands(None, token=TOKEN), seen=seen)
    with pytest.raises(PolicyDenied, match="none is set"):
        judge(proof, demands(None), seen=seen)


def test_token_beside_evidence(platform: SimulatedPlatform) -> None:
    """In protected mode a token, where one is set, is needed on top of good evidence."""
    proof = make_proof(transcript(), "worker", credentials(attester(platform)))
    with pytest.raises(PolicyDenied, match="join token"):
        judge(proof, demands(platform, token=TOKEN))


def test_hello() -> None:
    """Another version, role or mode ends the conversation before any evidence is made."""
    good = Hello(VERSION, "worker", "protected", bytes(32))
    check_hello(good, role="worker", mode="protected")
    for change, words in (
        ({"version": VERSION + 1}, "version 2"),
        ({"role": "frontend"}, "expected a worker host"),
        ({"mode": "open"}, "open mode"),
    ):
        with pytest.raises(PolicyDenied, match=words):
            check_hello(msgspec.structs.replace(good, **change), role="worker", mode="protected")

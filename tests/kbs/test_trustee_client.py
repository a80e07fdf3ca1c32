"""Our client against Trustee's shapes: ``tests/fakes/trustee.py`` shares no code with our broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.attest.simulated import SimulatedPlatform
from cloister.crypto.jwe import TeePrivateKey
from cloister.errors import KeyUnavailable, TransportError
from cloister.kbs.client import BrokerClient
from cloister.kbs.protocol import InitData
from tests.fakes.trustee import FakeTrustee
from tests.kbs.broker_process import Tee

SECRET = bytes(range(32))


@pytest.fixture
def trustee(tmp_path: Path) -> Iterator[FakeTrustee]:
    """A stand-in that holds one resource."""
    fake = FakeTrustee(tmp_path / "trustee")
    fake.resources["repo/type/tag"] = SECRET
    yield fake
    fake.stop()


@pytest.fixture
def client(trustee: FakeTrustee, platform: SimulatedPlatform) -> Iterator[BrokerClient]:
    """Our client in a simulated TEE."""
    with BrokerClient(trustee.url, attester=Tee(platform), ca=trustee.ca) as opened:
        yield opened


def test_a_resource_from_trustee(client: BrokerClient, trustee: FakeTrustee) -> None:
    """Cookie without attributes, evidence bound as the protocol says, a JWE of another library."""
    assert client.get_resource("kbs:///repo/type/tag") == SECRET
    request, attestation = trustee.seen
    assert request == {
        "version": "0.4.0",
        "tee": "tdx",
        "extra-params": {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]},
    }
    assert attestation["tee-evidence"]["additional_evidence"] == ""
    assert "init-data" not in attestation


def test_one_attestation_serves_several_resources(client: BrokerClient, trustee: FakeTrustee) -> None:
    """The cookie is sent again; when the KBS has forgotten it, the client attests once more."""
    trustee.resources["repo/type/other"] = b"2"
    client.get_resource("kbs:///repo/type/tag")
    assert client.get_resource("kbs:///repo/type/other") == b"2"
    assert len(trustee.seen) == 2
    trustee.sessions.clear()
    assert client.get_resource("kbs:///repo/type/other") == b"2"
    assert len(trustee.seen) == 4


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_hash_algorithms_are_negotiated(client: BrokerClient, trustee: FakeTrustee, algorithm: str) -> None:
    """The hash that the challenge selects is the one that the evidence is bound with, whatever its case."""
    trustee.challenge_extra = {"selected-hash-algorithm": algorithm.upper()}
    trustee.hash_algorithm = algorithm
    assert client.get_resource("kbs:///repo/type/tag") == SECRET


def test_a_hash_that_we_do_not_have(client: BrokerClient, trustee: FakeTrustee) -> None:
    """A demanded hash that was not offered ends the attestation."""
    trustee.challenge_extra = {"selected-hash-algorithm": "md5"}
    with pytest.raises(TransportError, match="md5"):
        client.get_resource("kbs:///repo/type/tag")


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA", "RSA with spaces"])
def test_every_form_of_jwe(
    client: BrokerClient, trustee: FakeTrustee, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Both curves and RSA are opened, and headers whose JSON has spaces."""
    curves = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}
    made = ec.generate_private_key(curves[kind]) if kind in curves else rsa.generate_private_key(65537, 2048)
    monkeypatch.setattr(TeePrivateKey, "generate", classmethod(lambda cls: cls(made)))
    trustee.spaced_header = kind.endswith("spaces")
    assert client.get_resource("kbs:///repo/type/tag") == SECRET


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_are_told(client: BrokerClient, trustee: FakeTrustee, status: int) -> None:
    """A denial is KeyUnavailable with the KBS's words, with the older status and with the newer one."""
    trustee.denied.add("repo/type/tag")
    trustee.deny_status = status
    with pytest.raises(KeyUnavailable, match="Access denied by policy"):
        client.get_resource("kbs:///repo/type/tag")
    with pytest.raises(KeyUnavailable, match="Plugin internal error"):
        client.get_resource("kbs:///repo/type/absent")


def test_init_data_is_sent_as_it_is(trustee: FakeTrustee, platform: SimulatedPlatform) -> None:
    """Init data goes along with its format and its body unchanged."""
    sent = InitData(format="toml", body='version = "0.1.0"\n')
    attester = Tee(platform)
    with BrokerClient(trustee.url, attester=attester, ca=trustee.ca, init_data=sent) as client:
        client.get_resource("kbs:///repo/type/tag")
    assert trustee.seen[1]["init-data"] == {"format": "toml", "body": 'version = "0.1.0"\n'}


def test_another_kbs_is_not_trusted(trustee: FakeTrustee, platform: SimulatedPlatform) -> None:
    """Without its certificate there is no connection, and so no evidence leaves."""
    with (
        BrokerClient(trustee.url, attester=Tee(platform)) as client,
        pytest.raises(TransportError, match="cannot be reached"),
    ):
        client.get_resource("kbs:///repo/type/tag")
    assert trustee.seen == []

"""What a caller demands of a service: met, it is asked; not met, nothing is sent and the check is named."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import cloister
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.cli.main import main
from cloister.client.session import AsyncClient, Client
from cloister.errors import ConfigError, PolicyDenied
from tests.fakes.sealed_service import MR_TD, POLICY_DIGEST, SealedService

MET = {"model_digest": "ab" * 32, "model_signer": "echo=ed25519:x", "policy_digest": POLICY_DIGEST.hex()}
UNMET = {"model_digest": "echo/1=" + "cd" * 32, "model_signer": "other", "policy_digest": "00" * 48}


@pytest.fixture
def trust(
    service: SealedService, platform: SimulatedPlatform, reference_values: ReferenceValues
) -> dict[str, Any]:
    """What every caller needs."""
    return {"url": service.url, "reference_values": reference_values, "roots": [platform.root]}


def test_met(trust: dict[str, Any], service: SealedService) -> None:
    """A service with the model, signer and policy that are demanded is asked."""
    with Client(**trust, **MET) as client:
        assert client.predict("echo", b"x").json()["method"] == "POST"
    assert len(service.requests) == 1


@pytest.mark.parametrize("name", list(UNMET))
def test_unmet(trust: dict[str, Any], service: SealedService, name: str) -> None:
    """Each demand that is not met refuses the service, by its name, before anything is sent."""
    demands = {**MET, name: UNMET[name]}
    with Client(**trust, **demands) as client, pytest.raises(PolicyDenied, match=name.replace("_", " ")):
        client.predict("echo", b"x")

    async def ask() -> None:
        async with AsyncClient(**trust, **demands) as client:
            await client.predict("echo", b"x")

    with pytest.raises(PolicyDenied, match=name.replace("_", " ")):
        asyncio.run(ask())
    assert service.capsules == []


def test_a_change_is_noticed(trust: dict[str, Any], service: SealedService) -> None:
    """A policy that changes while a caller works is refused at the next verification."""
    with Client(**trust, **MET, max_age_s=0.0) as client:
        client.predict("echo", b"x")
        service.policy_digest = bytes(48)
        with pytest.raises(PolicyDenied, match="policy digest"):
            client.predict("echo", b"x")
    assert len(service.requests) == 1


def test_transports(trust: dict[str, Any], service: SealedService) -> None:
    """Reference values carry demands to every SDK."""
    values = trust.pop("reference_values").demanding(model_digest="cd" * 32)
    transport = cloister.transport(**trust, reference_values=values)
    with httpx.Client(transport=transport, base_url=service.url) as http, pytest.raises(PolicyDenied):
        http.post("/v1/chat/completions", content=b"x")
    assert service.capsules == []


def test_a_demand_that_is_none(trust: dict[str, Any]) -> None:
    """A demand of the wrong form is an error before any connection."""
    with pytest.raises(ConfigError, match="model_digests"):
        Client(**trust, model_digest="abc")


def test_commands(
    capsys: pytest.CaptureFixture[str], service: SealedService, platform: SimulatedPlatform, tmp_path: Path
) -> None:
    """``verify`` and ``predict`` take the same demands; exit code 3 and the name of the check if unmet."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return int(caught.value.code or 0), shown.out, " ".join(shown.err.split())

    values = tmp_path / "reference.toml"
    values.write_text(f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n')
    root = tmp_path / "root.pem"
    root.write_bytes(platform.root.public_bytes(Encoding.PEM))
    image = tmp_path / "input.txt"
    image.write_text("x")
    trust = ("-r", values, "--simulated-root", root)
    met = ("--model-digest", "ab" * 32, "--policy-digest", POLICY_DIGEST.hex())
    code, out, _ = run("verify", service.url, *trust, *met, "--json")
    assert (code, json.loads(out)["identity"]["policy-digest"]) == (0, POLICY_DIGEST.hex())
    assert run("predict", service.url, "echo", image, *trust, *met)[0] == 0
    for option, value in (
        ("--model-digest", "cd" * 32),
        ("--model-signer", "y"),
        ("--policy-digest", "00" * 48),
    ):
        for command in (("verify", service.url), ("predict", service.url, "echo", image)):
            sent = len(service.capsules)
            code, _, error = run(*command, *trust, option, value)
            assert code == 3
            assert option.removeprefix("--").replace("-", " ") in error
            assert len(service.capsules) == sent
    listen = ("--listen", "127.0.0.1:0")
    code, _, error = run("proxy", service.url, *listen, *trust, "--model-digest", "cd" * 32)
    assert (code, "model digest" in error) == (3, True)

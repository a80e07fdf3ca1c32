"""The verifier: a verdict on what is genuine and acceptable, and on nothing else."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.attest.token import verify_ear
from cloister.verifier.server import Verifier, create_verifier
from tests.fakes.sealed_service import MR_TD, SealedService, TlsKey

KEY = ec.generate_private_key(ec.SECP256R1())
NONCE = bytes(range(32))
TEXT = base64.urlsafe_b64encode(NONCE).rstrip(b"=").decode()
ACCEPTS = f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> SealedService:
    """A service's parts; nothing of it listens here."""
    folder = tmp_path_factory.mktemp("service")
    platform = SimulatedPlatform.create(folder / "tdx", datetime.now(UTC) - timedelta(minutes=1))
    made = SealedService(platform, TlsKey.make(folder / "tls"))
    made.root = platform.root  # type: ignore[attr-defined]
    return made


def ask(service: SealedService, bundle: bytes, *, values: str = ACCEPTS, query: str = TEXT) -> httpx.Response:
    """One request for a verdict."""
    verifier = Verifier(ReferenceValues.from_toml(values), KEY, roots=[service.root])  # type: ignore[attr-defined]

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_verifier(verifier, origins=["https://page.example"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://verifier") as http:
            return await http.post(
                f"/v1/verdict?nonce={query}", content=bundle, headers={"origin": "https://page.example"}
            )

    import anyio

    return anyio.run(send)


def test_verdict(service: SealedService) -> None:
    """The verdict is a token of this verifier, with the nonce, the keys and the models of the service."""
    answer = ask(service, service.bundle(NONCE))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    claims = verify_ear(answer.text, [KEY.public_key()], datetime.now(UTC))
    said = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    assert said["service"]["nonce"] == TEXT
    assert base64.b64decode(said["service"]["ohttp-key-config"]) == service.gateway.key_config
    assert said["service"]["models"][0]["name"] == "echo"
    assert said["simulated"] is True


def test_another_nonce(service: SealedService) -> None:
    """Evidence of another question has no verdict."""
    answer = ask(service, service.bundle(bytes(32)))
    assert (answer.status_code, answer.json()["type"]) == (422, "BindingMismatch")


def test_not_acceptable(service: SealedService) -> None:
    """A genuine service that the reference values do not accept: 403 with the reason, and no token."""
    for values in ("", f'[tdx]\nmr_td = ["{MR_TD.hex()}"]\n', ACCEPTS.replace(MR_TD.hex(), "00" * 48)):
        answer = ask(service, service.bundle(NONCE), values=values)
        assert (answer.status_code, answer.json()["type"]) == (403, "AppraisalDenied")


def test_changed_bundle(service: SealedService) -> None:
    """A bundle whose list of models was changed has no verdict."""
    bundle = json.loads(service.bundle(NONCE))
    bundle["models"][0]["name"] = "other"
    assert ask(service, json.dumps(bundle).encode()).status_code == 422


@pytest.mark.parametrize("query", ["", "abc", "!!!!", TEXT + "&nonce=" + TEXT, "A" * 400])
def test_bad_nonces(service: SealedService, query: str) -> None:
    """Exactly one nonce of 16 to 64 bytes."""
    assert ask(service, service.bundle(NONCE), query=query).status_code == 400


def test_oversized(service: SealedService) -> None:
    """A body over a MiB is not read."""
    assert ask(service, bytes((1 << 20) + 1)).status_code == 400


@given(st.binary(max_size=100))
def test_garbage(raw: bytes) -> None:
    """Arbitrary bytes are malformed, and nothing else happens."""

    async def send() -> httpx.Response:
        app = create_verifier(Verifier(ReferenceValues.from_toml(ACCEPTS), KEY))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://v") as http:
            return await http.post(f"/v1/verdict?nonce={TEXT}", content=raw)

    import anyio

    assert anyio.run(send).status_code == 400

"""An OHTTP client whose HPKE comes from npm talks to our gateway, whole and in chunks, with each KEM."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.crypto.hpke import Aead, Kdf, Kem, PrivateKey
from cloister.ohttp.gateway import Gateway, GatewayKey
from tests.fakes.sealed_service import SealedService, TlsKey

SCRIPT = Path(__file__).with_name("outside_client.mjs")
PACKAGES = Path(__file__).resolve().parents[2] / ".venv" / "outside"


@pytest.fixture(scope="module")
def node() -> str:
    """Node, with the packages that ``make test`` installs."""
    found = shutil.which("node")
    if found is None or not (PACKAGES / "node_modules" / "@hpke" / "core").exists():
        pytest.skip(
            "npm install --prefix .venv/outside @hpke/core@1 @hpke/hybridkem-x-wing@0.7 was not possible"
        )
    return found


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SealedService]:
    """A gateway behind plain HTTP: what is tested here is inside."""
    platform = SimulatedPlatform.create(tmp_path / "tdx", datetime.now(UTC) - timedelta(minutes=1))
    service = SealedService(platform, TlsKey.make(tmp_path / "tls"))
    with service.serving(plain=True):
        yield service


@pytest.mark.parametrize("kind", ["whole", "chunked"])
@pytest.mark.parametrize("kem", list(Kem))
@pytest.mark.parametrize("aead", [Aead.AES_128_GCM, Aead.AES_256_GCM])
def test_conversation(node: str, service: SealedService, kem: Kem, aead: Aead, kind: str) -> None:
    """Its request opens here, and our answer opens there."""
    key = GatewayKey(5, PrivateKey.generate(kem), ((Kdf.HKDF_SHA256, aead),))
    service.gateway = Gateway((key,))
    done = subprocess.run(
        [node, "--no-warnings", str(SCRIPT), str(PACKAGES), service.url, key.config.render().hex(), kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["fields"]["content-type"]) == (200, "application/json")
    heard = json.loads(answer["body"])
    assert (heard["method"], heard["path"]) == ("POST", "/predictions/echo")
    assert base64.b64decode(heard["content"]) == b"\x07" * 40_000

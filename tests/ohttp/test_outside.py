"""OHTTP clients from elsewhere talk to our gateway, whole and in chunks.

One is ``ohttp-ts``, another implementation of all of it: OHTTP, Binary HTTP and HPKE. The other one is a
script whose HPKE is npm's ``@hpke``, for the KEMs that the first does not have.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
    check_answer(ask(node, SCRIPT, service.url, key, kind))


@pytest.mark.parametrize("kind", ["whole", "chunked"])
def test_ohttp_ts(node: str, service: SealedService, kind: str) -> None:
    """A second implementation of OHTTP agrees with ours, in both of its forms."""
    if not (PACKAGES / "node_modules" / "ohttp-ts").exists():
        pytest.skip("npm install --prefix .venv/outside ohttp-ts@0.5 hpke@1 was not possible")
    key = GatewayKey(5, PrivateKey.generate(), ((Kdf.HKDF_SHA256, Aead.AES_128_GCM),))
    service.gateway, service.piece_bytes = Gateway((key,)), 5000
    check_answer(ask(node, SCRIPT.with_name("outside_ohttp_ts.mjs"), service.url, key, kind))


def ask(node: str, script: Path, url: str, key: GatewayKey, kind: str) -> dict[str, Any]:
    """Run a client; what it was answered."""
    config = key.config.render().hex()
    done = subprocess.run(
        [node, "--no-warnings", str(script), str(PACKAGES), url, config, kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check_answer(answer: dict[str, Any]) -> None:
    """The echo of what both clients ask."""
    assert (answer["status"], answer["fields"]["content-type"]) == (200, "application/json")
    heard = json.loads(answer["body"])
    assert (heard["method"], heard["path"]) == ("POST", "/predictions/echo")
    assert base64.b64decode(heard["content"]) == b"\x07" * 40_000

"""The acceptance case: a ResNet-50 predicts the same with protected parameters, and every attack is refused.

Broker and caches are processes of their own. The cases are those that every such system has to show: wrong
measurement, replayed attestation, wrong model id, one flipped bit, and a key server that cannot be reached,
with a warm cache and with a cold one.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import cloister.torch
from cloister.errors import BadCiphertext, KeyUnavailable, TransportError, WrongModel
from cloister.kbs.client import BrokerClient
from cloister.seal.signing import SigningKey, TrustedSigners
from cloister.settings import Settings, TorchSettings
from tests.kbs.broker_process import Run
from tests.kbs.cache.site import Running, Site, new_site

ROOT = Path(__file__).resolve().parents[2]
URI = "kbs:///models/dek/resnet50"
COLD_S = 5.0


def example(name: str) -> Any:
    """A module of the folder ``examples``."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Protected:
    """A sealed ResNet-50, who holds its key, and what it answered before."""

    site: Site
    broker: Running
    container: Path
    trusted: TrustedSigners
    before: list[tuple[int, float]]

    def load(self, path: Path | None = None, *, cache: str = "main", model_id: str = "resnet50") -> Any:
        """The weights, as a process beside a cache gets them."""
        settings = Settings(torch=TorchSettings(broker=f"unix:{self.site.folder / f'{cache}.sock'}"))
        return cloister.torch.load(
            path or self.container, model_id=model_id, trusted=self.trusted, settings=settings
        )


@pytest.fixture(scope="module")
def resnet() -> Any:
    """The example's model."""
    return example("resnet50")


@pytest.fixture(scope="module")
def protected(resnet: Any) -> Iterator[Protected]:
    """The model, sealed by its owner; broker and cache run, and the cache is warm."""
    signer = SigningKey.generate()
    with new_site() as site, site.broker() as broker:
        model = resnet.random_resnet50()
        container = site.folder / "resnet50.sealed"
        with site.admin() as admin:
            cloister.torch.save(model.state_dict(), container, URI, signer=signer, registry=admin)
        with site.cache("main", uris=[URI], lease_s=60.0):
            before = resnet.top5(model, resnet.picture())
            yield Protected(site, broker, container, TrustedSigners([signer.public]), before)


def test_top_5_is_the_same_before_and_after(protected: Protected, resnet: Any) -> None:
    """A new model with the protected parameters gives the same classes with the same probabilities."""
    model = resnet.ResNet50()
    model.load_state_dict(protected.load())
    assert resnet.top5(model.eval(), resnet.picture()) == protected.before


def test_wrong_measurement(protected: Protected) -> None:
    """A TEE with other code gets no key of the broker, and the reason names the measurement."""
    site = protected.site
    other = site.tee(mr_td=bytes(48))
    with (
        BrokerClient(site.url, attester=other, ca=site.ca) as keys,
        pytest.raises(KeyUnavailable, match="mr_td"),
    ):
        cloister.torch.load(protected.container, keys=keys, trusted=protected.trusted)


def test_right_measurement(protected: Protected, resnet: Any) -> None:
    """The same TEE with the accepted code does get it, so that it is the measurement that was refused."""
    site = protected.site
    with BrokerClient(site.url, attester=site.tee(), ca=site.ca) as keys:
        weights = cloister.torch.load(protected.container, keys=keys, trusted=protected.trusted)
    assert len(weights) == len(resnet.ResNet50().state_dict())


def test_replayed_attestation(protected: Protected) -> None:
    """Evidence that was accepted once is worth nothing again: neither in its session nor in a new one."""
    site = protected.site
    with httpx.Client(base_url=site.url, verify=_trusting(site.ca), trust_env=False) as http:
        run = Run(site, http)  # type: ignore[arg-type]  # it needs the platform only
        run.auth()
        recorded = run.body()
        assert run.attest(recorded).status_code == 200
        assert run.attest(recorded).status_code == 401
        http.cookies.clear()
        run.auth()
        answer = run.attest(recorded)
        assert answer.status_code == 401
        assert "nonce" in answer.json()["detail"]


def test_wrong_model_id(protected: Protected) -> None:
    """A container of another model than the one that was asked for is refused, though its key is there."""
    with pytest.raises(WrongModel, match="resnet50"):
        protected.load(model_id="resnet101")


def test_key_of_another_model(protected: Protected) -> None:
    """Under the key of another model id the parameters do not open."""

    class Swapped:
        def get_resource(self, uri: str) -> bytes:
            assert uri == f"{URI}?version=1"
            return bytes(range(32))

    with pytest.raises(BadCiphertext, match="key"):
        cloister.torch.load(protected.container, keys=Swapped(), trusted=protected.trusted)


@pytest.mark.parametrize("where", [0.0, 0.37, 1.0])
def test_one_flipped_bit(protected: Protected, where: float) -> None:
    """One changed bit of ciphertext, wherever it is, and nothing is loaded."""
    raw = bytearray(protected.container.read_bytes())
    first = raw.index(b'"version":"1"}') + 14 + 64 + 56
    raw[first + int(where * (len(raw) - 1 - first))] ^= 0x10
    path = protected.site.folder / "flipped.sealed"
    path.write_bytes(raw)
    with pytest.raises(BadCiphertext):
        protected.load(path)


def test_an_unlisted_key(protected: Protected) -> None:
    """A cache gives out no key but its own, whatever the broker holds."""
    with protected.site.local("main") as client, pytest.raises(KeyUnavailable, match="not among"):
        client.get_resource("kbs:///models/dek/other")


def test_key_server_unreachable(protected: Protected, resnet: Any) -> None:
    """With the broker killed a warm cache serves on; a cold one says within five seconds why not."""
    protected.load()
    protected.broker.stop(signal.SIGKILL)
    model = resnet.ResNet50()
    model.load_state_dict(protected.load())
    assert resnet.top5(model.eval(), resnet.picture()) == protected.before
    with protected.site.cache("cold", uris=[URI]):
        begin = time.monotonic()
        with pytest.raises(TransportError, match=r"does not hold .* cannot be reached"):
            protected.load(cache="cold")
        assert time.monotonic() - begin < COLD_S


def test_the_example_runs() -> None:
    """The script in the documentation does what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOISTER_")}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "protected_resnet50.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as it should be" in done.stdout


def _trusting(certificate: Path) -> Any:
    return ssl.create_default_context(cafile=str(certificate))

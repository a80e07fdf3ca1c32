"""ResNet-50 with protected parameters: owner, key broker, key cache and PyTorch, each a process of its own.

    python examples/protected_resnet50.py

1. The owner seals the weights; the data key goes to the broker.
2. A key cache attests to the broker and gets the key.
3. A PyTorch process loads the sealed weights; it asks the cache for the key by itself.
4. The five best classes of a picture are the same as before.
5. The broker ends, and the model still loads. What must be refused is refused.

The TEE is simulated: real quotes under a root that protects nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resnet50 import ResNet50, picture, random_resnet50, top5

import cloister.torch
from cloister.attest.attesters.simulated import SimulatedTdxAttester
from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import CloisterError
from cloister.kbs.cache.identity import MeasuredFiles, cache_digest
from cloister.kbs.client import BrokerClient
from cloister.settings import load_settings

MODEL_ID = "resnet50"
KEY = "kbs:///models/dek/resnet50"
LOADED = "not refused"
READY_S = 30.0
POLICY = """
@id("resnet50-to-appraised-tees")
permit (principal, action == Action::"release", resource)
when { resource.repository == "models" && context.tcb_status == "UpToDate" && !context.debug };
"""


@dataclass(frozen=True)
class Site:
    """Files and ports of one run."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def container(self) -> Path:
        return self.folder / "resnet50.sealed"

    @property
    def cache(self) -> str:
        return f"unix:{self.folder / 'keys.sock'}"

    @property
    def ca(self) -> Path:
        return self.folder / "keys" / "tls.pem"

    def environment(self, **settings: str) -> dict[str, str]:
        """This process's environment, with settings for ``cloister.torch``."""
        names = {f"CLOISTER_TORCH_{name.upper()}": value for name, value in settings.items()}
        return {**os.environ, **names, "CLOISTER_TORCH_TRUSTED_SIGNERS": str(self.folder / "signers.txt")}


def prepare(folder: Path) -> Site:
    """A simulated platform, and the settings of broker and cache."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        site = Site(folder, probe.getsockname()[1])
    SimulatedPlatform.create(folder / "platform", datetime.now(UTC))
    (folder / "release.cedar").write_text(POLICY)
    (folder / "site.toml").write_text(
        f"""
        [keys]
        folder = "{folder / "keys"}"
        port = {site.port}
        reference_values = "{folder / "reference.toml"}"
        policy = "{folder / "release.cedar"}"
        collateral = "{folder / "platform" / "collateral.json"}"
        simulated_root = "{folder / "platform" / "root.pem"}"

        [cache]
        broker = "{site.url}"
        broker_ca = "{site.ca}"
        uris = ["{KEY}"]
        socket = "{folder / "keys.sock"}"

        [attest]
        attester = "simulated-tdx"
        simulated_platform = "{folder / "platform"}"
        """
    )
    (folder / "reference.toml").write_text("")
    return site


def accept_cache(site: Site) -> None:
    """The owner lists the cache: this code, with these settings, on this platform."""
    settings = load_settings(site.folder / "site.toml")
    digest = cache_digest(settings, MeasuredFiles.read(settings.cache)).hex()
    mr_td = measure_package(installed_package()).hex()
    text = f'allow_simulated = true\n[tdx]\nmr_td = ["{mr_td}"]\nmr_config_id = ["{digest}"]\n'
    (site.folder / "reference.toml").write_text(text)


@contextlib.contextmanager
def running(site: Site, *command: str, ready: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A ``cloister`` command until the end of the block; begins when the file ``ready`` is there."""
    arguments = [sys.executable, "-m", "cloister", *command, "-c", str(site.folder / "site.toml")]
    with (site.folder / f"{command[-1]}.log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + READY_S
        while b'"listening"' not in Path(log.name).read_bytes() or not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command} did not start: {Path(log.name).read_text()}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait()


def own(site: Site) -> list[tuple[int, float]]:
    """The owner's part: a model, its answer, and its sealed weights."""
    model = random_resnet50()
    with temporary_environment(
        site.environment(
            broker=site.url,
            broker_ca=str(site.ca),
            admin_token=str(site.folder / "keys" / "admin.token"),
            signer=str(site.folder / "signer.key"),
        )
    ):
        header = cloister.torch.save(model.state_dict(), site.container, key=KEY, model_id=MODEL_ID)
    (site.folder / "signers.txt").write_text(header.signer + "\n")
    return top5(model, picture())


def classify(site: Site) -> list[Any]:
    """The five best classes by a new PyTorch process beside the cache."""
    arguments = [sys.executable, __file__, "--classify", str(site.container)]
    environment = site.environment(broker=site.cache)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    return [tuple(pair) for pair in json.loads(done.stdout)]


def run_classify(container: str) -> None:
    """Inside that process: all that a user of protected parameters has to write is the first line."""
    weights = cloister.torch.load(container, model_id=MODEL_ID)
    model = ResNet50()
    model.load_state_dict(weights)
    print(json.dumps(top5(model.eval(), picture())))


def refusal(site: Site, container: Path, model_id: str = MODEL_ID) -> str:
    """Why a container does not load."""
    with temporary_environment(site.environment(broker=site.cache)):
        try:
            cloister.torch.load(container, model_id=model_id)
        except CloisterError as error:
            return f"{type(error).__name__}: {error.message}"
    return LOADED


def flipped(site: Site) -> Path:
    """The container with one bit of its ciphertext changed."""
    damaged = bytearray(site.container.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = site.folder / "flipped.sealed"
    path.write_bytes(damaged)
    return path


def ask_with_other_code(site: Site) -> str:
    """What the broker says to a TEE that runs something else."""
    platform = SimulatedPlatform.load(site.folder / "platform")
    other = SimulatedTdxAttester(platform, mr_td=bytes(48), mr_config_id=bytes(48))
    try:
        with BrokerClient(site.url, attester=other, ca=site.ca) as client:
            client.get_resource(KEY)
    except CloisterError as error:
        return f"{type(error).__name__}: {error.message}"
    return LOADED


@contextlib.contextmanager
def temporary_environment(environment: dict[str, str]) -> Iterator[None]:
    """``os.environ`` for the block."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def show(what: str, value: object) -> None:
    print(f"{what:<28}{value}", flush=True)


def main() -> int:
    """Run the story; 0 if everything was as it should be."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="resnet50-") as name:
        site = prepare(Path(name))
        with running(site, "keys", "serve", ready=site.ca) as broker:
            before = own(site)
            show("top 5 before", before)
            accept_cache(site)
            with running(site, "keys", "cache", ready=site.folder / "keys.sock"):
                after = classify(site)
                show("top 5 protected", after)
                refusals = {
                    "wrong model id": refusal(site, site.container, model_id="resnet51"),
                    "one flipped bit": refusal(site, flipped(site)),
                    "other code": ask_with_other_code(site),
                }
                broker.send_signal(signal.SIGKILL)
                broker.wait()
                warm = classify(site)
                show("broker gone, cache warm", warm)
            refusals["broker and cache gone"] = refusal(site, site.container)
            for what, reason in refusals.items():
                show(what, reason)
    good = before == after == warm and LOADED not in refusals.values()
    show("as it should be" if good else "WRONG", f"in {time.monotonic() - begin:.1f} s")
    return 0 if good else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--classify"]:
        run_classify(*sys.argv[2:])
    else:
        sys.exit(main())

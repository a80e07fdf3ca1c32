"""Protected mode end to end: broker, server and worker in processes of their own, a verifying caller here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.client.session import Client
from cloister.errors import CloisterError, ModelFailed, PolicyDenied
from cloister.kbs.client import BrokerAdmin
from cloister.kbs.owner import SealRequest, load_or_create_signer, seal_model
from cloister.seal.signing import TrustedSigners
from cloister.seal.store import ModelStore
from cloister.serve.pack import pack_archive
from cloister.settings import load_settings, settings_digest
from tests.processes.server import Server, free_port
from tests.serve.sandbox.inside import sandbox_flags

CANARIES = {
    name: f"canary-{name}-7f3a91"
    for name in ("source", "weights", "request", "answer", "print", "stderr", "error", "query")
}
HANDLER = f"""
# {CANARIES["source"]}
import logging, os, sys
from pathlib import Path

class Service:
    def initialize(self, context):
        self.weights = Path(context.system_properties["model_dir"], "weights.bin").read_bytes()
    def handle(self, data, context):
        body = data[0]["body"]
        print("{CANARIES["print"]}", body, flush=True)
        print("{CANARIES["stderr"]}", body, file=sys.stderr, flush=True)
        os.write(1, b"{CANARIES["print"]}")
        os.write(2, b"{CANARIES["stderr"]}")
        logging.error("handler got %s", body)
        if body == "raise":
            raise OSError("{CANARIES["error"]} " + body)
        if body == "exit":
            os._exit(3)
        if body == "headers":
            return [context.get_all_request_header(0)]
        if body == "pid":
            return [os.getpid()]
        return ["{CANARIES["answer"]} " + str(len(self.weights)) + " " + str(body)]
"""
POLICY = """
permit (principal, action == Action::"release", resource) when { context.tcb_status == "UpToDate" };
"""
ACCESS = "permit (principal, action, resource);"
"""Who may ask is tried elsewhere."""
RUN_BROKER = (
    "import json, sys; from cloister.kbs.server import run_broker; "
    "from cloister.settings import load_settings; "
    "run_broker(load_settings(None, {}, json.loads(sys.argv[1])).keys)"
)


@dataclass
class World:
    """One owner, one broker, one store, one simulated platform."""

    folder: Path
    memory: Path
    broker_port: int
    https_port: int
    http_port: int
    extra: dict[str, Any] = field(default_factory=dict)
    """Settings of the server besides those that every test has."""

    @property
    def flags(self) -> dict[str, Any]:
        """Settings of the server that everybody expects."""
        return {
            "serve.model_store": str(self.folder / "store"),
            "serve.https_port": self.https_port,
            "serve.http_port": self.http_port,
            "serve.broker": f"https://127.0.0.1:{self.broker_port}",
            "serve.broker_ca": str(self.folder / "keys" / "tls.pem"),
            "serve.trusted_signers": str(self.folder / "signers.txt"),
            "serve.tmpfs": str(self.memory),
            "serve.access_policy": str(self.folder / "access.cedar"),
            **sandbox_flags(),
            "attest.attester": "simulated-tdx",
            "attest.simulated_platform": str(self.folder / "platform"),
            **self.extra,
        }

    def reference_values(self, *flags: dict[str, Any]) -> str:
        digests = [settings_digest(load_settings(None, {}, item)).hex() for item in flags]
        mr_td = measure_package(installed_package()).hex()
        return f'allow_simulated = true\n[tdx]\nmr_td = ["{mr_td}"]\nmr_config_id = {json.dumps(digests)}\n'

    def client(self, url: str = "") -> Client:
        return Client(
            url or f"https://127.0.0.1:{self.https_port}",
            reference_values=ReferenceValues.from_toml(self.reference_values(self.flags)),
            roots=[SimulatedPlatform.load(self.folder / "platform").root],
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running broker, and one model sealed into a store."""
    with make_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@contextmanager
def make_world(folder: Path, **extra: Any) -> Iterator[World]:
    """A broker in ``folder``, for servers with these settings besides."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as memory:
        made = World(folder, Path(memory), free_port(), free_port(), free_port(), extra)
        SimulatedPlatform.create(folder / "platform", datetime.now(UTC))
        (folder / "reference.toml").write_text(
            made.reference_values(made.flags, {**made.flags, "serve.model_store": str(folder / "flipped")})
        )
        (folder / "policy.cedar").write_text(POLICY)
        (folder / "access.cedar").write_text(ACCESS)
        keys = {
            "keys.folder": str(folder / "keys"),
            "keys.port": made.broker_port,
            "keys.reference_values": str(folder / "reference.toml"),
            "keys.policy": str(folder / "policy.cedar"),
            "keys.collateral": str(folder / "platform" / "collateral.json"),
            "keys.simulated_root": str(folder / "platform" / "root.pem"),
        }
        with (folder / "broker.log").open("wb") as log:
            broker = subprocess.Popen(
                [sys.executable, "-c", RUN_BROKER, json.dumps(keys)], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            seal_into(made, Path(memory))
            yield made
        finally:
            broker.terminate()
            broker.wait(20)


def seal_into(world: World, memory: Path) -> None:
    """The owner's part; plaintext only in memory."""
    folder = world.folder
    with tempfile.TemporaryDirectory(dir=memory) as plain:
        source = Path(plain, "handler.py")
        source.write_text(HANDLER)
        weights = Path(plain, "weights.bin")
        weights.write_bytes(CANARIES["weights"].encode() * 10_000)
        archive = Path(plain, "own.mar")
        pack_archive(archive, name="own", version="1.0", handler=source, extra_files=[weights])
        signer = load_or_create_signer(Path(plain, "signer.key"))
        (folder / "signers.txt").write_text(signer.public + "\n")
        token = folder / "keys" / "admin.token"
        deadline = time.monotonic() + 30
        while not (token.exists() and broker_answers(world)):
            assert time.monotonic() < deadline, (folder / "broker.log").read_text()
            time.sleep(0.05)
        with BrokerAdmin(
            world.flags["serve.broker"], token=token.read_text(), ca=folder / "keys/tls.pem"
        ) as admin:
            request = SealRequest(
                source=archive, name="own", version="1.0", sequence=1, key_uri="kbs:///models/own/1"
            )
            container = seal_model(request, admin=admin, signer=signer, out=Path(plain, "own.sealed"))
        ModelStore(folder / "store", TrustedSigners.from_lines([signer.public])).add(container)


def broker_answers(world: World) -> bool:
    try:
        url = f"https://127.0.0.1:{world.broker_port}/healthz"
        context = ssl.create_default_context(cafile=str(world.folder / "keys" / "tls.pem"))
        return httpx.get(url, verify=context).status_code == 200
    except (httpx.HTTPError, OSError):
        return False


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    """The protected server."""
    with Server(world.flags, environment={"HOME": str(world.folder / "home")}) as running:
        line = running.wait_ready()
        assert "own 1.0" in line
        yield running


def test_verified_caller_is_answered(world: World, server: Server) -> None:
    """A caller verifies the service, sees the loaded model in its evidence, and predicts under seal."""
    with world.client() as client:
        verified = client.verify()
        (model,) = verified.identity.models
        assert (model.name, model.version) == ("own", "1.0")
        assert model.sandbox.startswith("network=")
        assert ("=none" in model.sandbox.partition(" processes")[0]) is bool(sandbox_flags())
        assert verified.result.simulated
        answer = client.predict("own", CANARIES["request"])
        assert answer.content.decode() == f"{CANARIES['answer']} 210000 {CANARIES['request']}"
    listed = httpx.get(f"{server.url}/models", verify=False).json()["models"][0]
    assert (listed["digest"], listed["signer"]) == (model.container_digest, model.signer)


def test_sealed_over_plain_http(world: World, server: Server) -> None:
    """Evidence and sealed requests pass over plain HTTP; everything else is refused there."""
    plain = f"http://127.0.0.1:{world.http_port}"
    assert httpx.get(f"{plain}/ping").json() == {"status": "Healthy"}
    for path in ("/predictions/own", "/models", "/metrics"):
        answer = httpx.post(plain + path, content=b"secret")
        assert (answer.status_code, answer.json()["type"]) == (403, "PlainHttpRefused")
    keys = httpx.get(f"{plain}/.well-known/ohttp-gateway")
    assert keys.headers["content-type"] == "application/ohttp-keys"


def test_credentials_do_not_reach_the_model(server: Server) -> None:
    """What lets a caller in is not shown to the handler."""
    headers = {"content-type": "text/plain", "authorization": "Bearer x", "cookie": "a=b", "x-mine": "1"}
    seen = httpx.post(
        f"{server.url}/predictions/own", content="headers", headers=headers, verify=False
    ).json()
    assert seen["x-mine"] == "1"
    assert not {"authorization", "cookie"} & set(seen)


def test_failures_do_not_tell(world: World, server: Server) -> None:
    """A handler's exception that is not about the input reaches the caller as type and fingerprint only."""
    with world.client() as client, pytest.raises(ModelFailed) as caught:
        client.predict("own", "raise")
    assert "OSError, fingerprint" in caught.value.message
    assert CANARIES["error"] not in str(caught.value)


def test_worker_recovers(world: World, server: Server) -> None:
    """A killed worker is replaced from memory, without asking the broker again."""
    with world.client() as client:
        before = int(client.predict("own", "pid").content)
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while True:
            try:
                assert int(client.predict("own", "pid").content) != before
                return
            except CloisterError:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_evidence_needs_a_nonce(server: Server) -> None:
    """Evidence without a good nonce is refused."""
    for query in ("", "?nonce=", "?nonce=abc", "?nonce=" + "A" * 200):
        answer = httpx.get(f"{server.url}/.well-known/cloister/evidence{query}", verify=False)
        assert (answer.status_code, answer.json()["code"]) == (400, 400)


def test_other_settings_get_no_key(world: World) -> None:
    """A server with other settings than the owner allowed is refused by the broker, with one line."""
    flags = {**world.flags, "serve.https_port": free_port(), "serve.http_port": 0}
    with Server(flags) as other:
        assert other.finish() == 3
        assert "mr_config_id" in other.stderr.splitlines()[-1]


def test_flipped_bit_is_refused(world: World) -> None:
    """A container with one changed bit anywhere stops the start with a verification error."""
    store = world.folder / "flipped"
    for place in (0.001, 0.3, 0.9):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(world.folder / "store", store)
        container = max((p for p in store.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        raw = bytearray(container.read_bytes())
        raw[int(len(raw) * place)] ^= 1
        container.chmod(0o600)
        container.write_bytes(bytes(raw))
        # The ports are taken by the good server: the flipped one must fail earlier or have its own.
        flags = {**world.flags, "serve.model_store": str(store), "serve.host": "127.0.0.2"}
        (world.folder / "reference.toml").write_text(world.reference_values(world.flags, flags))
        with Server(flags) as other:
            assert other.finish() in (3, 4), other.stderr
            assert "Traceback" not in other.stderr
            assert "own" not in other.stdout


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ({}, {"LD_PRELOAD": "/nonexistent.so"}, "LD_PRELOAD"),
        ({"serve.tmpfs": "/tmp"}, {}, "expected tmpfs"),
        ({"serve.trusted_signers": ""}, {}, "trusted_signers"),
        ({"serve.broker": ""}, {}, "serve.broker"),
        ({"serve.models": ["other"]}, {}, "other"),
    ],
)
def test_unsafe_starts(world: World, flags: dict[str, Any], environment: dict[str, str], words: str) -> None:
    """A protected server does not start where its promises could not hold."""
    settings = {**world.flags, **flags, "serve.https_port": free_port(), "serve.http_port": 0}
    with Server(settings, environment=environment) as other:
        assert other.finish() == 2
        assert words in other.stderr.splitlines()[-1]


def test_wrong_reference_values(world: World, server: Server) -> None:
    """A caller who expects other settings sends nothing."""
    other = {**world.flags, "serve.max_queue": 1}
    client = Client(
        server.url,
        reference_values=ReferenceValues.from_toml(world.reference_values(other)),
        roots=[SimulatedPlatform.load(world.folder / "platform").root],
    )
    with client, pytest.raises(PolicyDenied):
        client.predict("own", CANARIES["request"])


def test_no_plaintext_anywhere(world: World, server: Server) -> None:
    """After all of this, no canary is in a log, a metric or a file outside of memory; the stop is clean."""
    httpx.post(
        f"{server.url}/predictions/own?q={CANARIES['query']}", content=CANARIES["request"], verify=False
    )
    metrics = httpx.get(f"{server.url}/metrics", verify=False).text
    workers = server.workers()
    assert server.stop() == 0
    assert server.stderr.count("{") > 2
    texts = {"metrics": metrics, "stdout": server.stdout, "stderr": server.stderr}
    for path in world.folder.rglob("*"):
        if path.is_file():
            texts[str(path)] = path.read_bytes().decode("latin-1")
    found = [(name, where) for where, text in texts.items() for name, c in CANARIES.items() if c in text]
    assert found == []
    assert list(world.memory.iterdir()) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)

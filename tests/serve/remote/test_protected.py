"""Protected worker hosts end to end: broker, frontend, host and worker, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.client.session import Client
from tests.processes.server import Server, free_port, pack
from tests.processes.test_protected import ACCESS, CANARIES, POLICY, RUN_BROKER, World, seal_into
from tests.serve.remote.machines import Host


def accepted(measurement: str = "") -> str:
    """Reference values for this package on a simulated platform."""
    mr_td = measurement or measure_package(installed_package()).hex()
    return f'allow_simulated = true\n[tdx]\nmr_td = ["{mr_td}"]\n'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running broker that gives keys to this package, and one sealed model."""
    folder = tmp_path_factory.mktemp("world")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as memory:
        made = World(folder, Path(memory), free_port(), free_port(), free_port())
        SimulatedPlatform.create(folder / "platform", datetime.now(UTC))
        (folder / "reference.toml").write_text(accepted())
        (folder / "other.toml").write_text(accepted("00" * 48))
        (folder / "policy.cedar").write_text(POLICY)
        (folder / "access.cedar").write_text(ACCESS)
        keys = {
            "keys.folder": str(folder / "keys"),
            "keys.port": made.broker_port,
            "keys.reference_values": str(folder / "reference.toml"),
            "keys.policy": str(folder / "policy.cedar"),
            "keys.simulated_root": str(folder / "platform" / "root.pem"),
            "keys.collateral": str(folder / "platform" / "collateral.json"),
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


def frontend(world: World, port: int, **changes: Any) -> dict[str, Any]:
    """Settings of a frontend on the simulated platform."""
    return {
        **world.flags,
        "serve.worker_port": port,
        "serve.worker_simulated_root": str(world.folder / "platform" / "root.pem"),
        "serve.remote_only": True,
        **changes,
    }


def host(world: World, port: int, **changes: Any) -> dict[str, Any]:
    """Settings of a worker host on the same platform."""
    return {
        **world.flags,
        "worker.frontend": f"https://127.0.0.1:{port}",
        "worker.simulated_root": str(world.folder / "platform" / "root.pem"),
        **changes,
    }


def client(world: World) -> Client:
    """A caller who verifies the frontend."""
    root = SimulatedPlatform.load(world.folder / "platform").root
    return Client(
        f"https://127.0.0.1:{world.https_port}",
        reference_values=ReferenceValues.from_toml(accepted()),
        roots=[root],
    )


def test_sealed_request_through_a_remote_worker(world: World) -> None:
    """Frontend and host verify each other; the host gets the key itself; no content is logged."""
    port = free_port()
    with Server(frontend(world, port)) as server, Host(host(world, port)) as worker:
        server.wait_ready()
        worker.wait_joined()
        with client(world) as asking:
            answer = asking.predict("own", CANARIES["request"])
            assert answer.content.decode() == f"{CANARIES['answer']} 210000 {CANARIES['request']}"
            assert int(asking.predict("own", "pid").content) in worker.workers()
        assert worker.stop() == 0
        assert server.stop() == 0
    joined = "".join(worker.errors + worker.lines)
    assert "tier warning" in joined
    assert "model unlocked" in joined
    assert '"simulated": true' in server.stderr
    for name, canary in CANARIES.items():
        assert canary not in joined + server.stdout + server.stderr, name


def test_who_is_refused(world: World) -> None:
    """Wrong measurement on either side, open mode, another platform: a line here and there, exit code 3."""
    port = free_port()
    folder = world.folder
    SimulatedPlatform.create(folder / "strange", datetime.now(UTC))
    (folder / "plain").mkdir()
    pack(folder / "plain", "own", "def handle(data, context): ...\n")
    (folder / "token").write_text("0123456789abcdef0123456789abcdef")
    other = str(folder / "other.toml")
    strange = str(folder / "strange" / "root.pem")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"worker.reference_values": other}, "mr_td: expected"),
        (
            {
                "serve.mode": "open",
                "serve.model_store": str(folder / "plain"),
                "worker.token": str(folder / "token"),
            },
            "open mode",
        ),
        ({"attest.simulated_platform": str(folder / "strange"), "worker.simulated_root": strange}, ""),
        ({"serve.sandbox": "off"}, "confines models by"),
    ]
    with Server(frontend(world, port)) as server:
        server.wait_ready()
        for changes, words in cases:
            with Host(host(world, port, **changes)) as worker:
                assert worker.finish() == 3, (changes, worker.errors)
                assert words in worker.errors[-1]
        server.stop()
        assert server.stderr.count("worker host refused") == len(cases)
        assert "worker host joined" not in server.stderr
    with Server(frontend(world, port, **{"serve.worker_reference_values": other})) as server:
        server.wait_ready()
        with Host(host(world, port)) as worker:
            assert worker.finish() == 3
            assert "refuses: tdx evidence is genuine but not acceptable: mr_td" in worker.errors[-1]


def test_simulated_is_not_accepted_by_default(world: World) -> None:
    """Without the root in the settings, a simulated machine does not trust its own kind, nor start."""
    port = free_port()
    with Server(frontend(world, port, **{"serve.worker_simulated_root": ""})) as server:
        assert server.finish() == 3
    with Host(host(world, port, **{"worker.simulated_root": ""})) as worker:
        assert worker.finish() == 3

"""A broker in a process of its own, that a test may kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.simulated import SimulatedPlatform
from cloister.kbs.client import BrokerAdmin, BrokerClient
from cloister.policy.cedar import UNSAFE_SIMULATED_POLICY, shipped
from cloister.settings import KeysSettings
from tests.kbs.broker_process import REFERENCE, Tee

PROGRAM = """
import json, sys
from cloister.kbs.server import run_broker
from cloister.settings import KeysSettings
run_broker(KeysSettings(**json.loads(sys.argv[1])))
"""


class BrokerProcess:
    """``run_broker`` in a subprocess, on the state folder ``folder/keys``."""

    def __init__(self, folder: Path, platform: SimulatedPlatform, /, **changes: Any) -> None:
        self.platform = platform
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "reference_values": REFERENCE.encode(),
            "policy": shipped(UNSAFE_SIMULATED_POLICY).encode(),
            "collateral": msgspec.json.encode(platform.endorsements(datetime.now(UTC)).to_mapping()),
            "simulated_root": platform.root.public_bytes(Encoding.PEM),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        options: dict[str, Any] = {name: str(folder / name) for name in files}
        options |= {"folder": str(folder / "keys"), "port": 0, "rate_limit": 0.0, **changes}
        self.settings = KeysSettings(**options)
        command = [sys.executable, "-c", PROGRAM, json.dumps(options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        before: list[str] = []
        for line in self.process.stderr:
            before.append(line)
            if line.startswith("{") and json.loads(line)["event"] == "listening":
                self.url = str(json.loads(line)["url"])
                break
        else:
            raise AssertionError("".join(before))
        self.output: list[str] = []
        self._drain = threading.Thread(target=self.output.extend, args=[self.process.stderr], daemon=True)
        self._drain.start()

    def assert_running(self) -> None:
        """It has not ended by itself."""
        status = self.process.poll()
        assert status is None, f"ended with {status}: {''.join(self.output[-20:])}"

    @property
    def state(self) -> Path:
        """The state folder."""
        return Path(self.settings.folder)

    def client(self, *more_urls: str) -> BrokerClient:
        """A TEE's client of this broker and others."""
        return BrokerClient(
            (self.url, *more_urls), attester=Tee(self.platform), ca=self.state / "tls.pem", timeout_s=10
        )

    def admin(self, *more_urls: str) -> BrokerAdmin:
        """The owner's."""
        token = (self.state / "admin.token").read_text()
        return BrokerAdmin((self.url, *more_urls), token=token, ca=self.state / "tls.pem", timeout_s=10)

    def kill(self) -> None:
        """``kill -9``."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM."""
        self._end(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(20)
        self._drain.join(20)
        assert self.process.stderr is not None
        self.process.stderr.close()

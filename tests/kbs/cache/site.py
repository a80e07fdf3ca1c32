"""A whole site in processes of its own: a key broker, key caches, and a simulated platform for all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.kbs.cache.client import CacheClient
from cloister.kbs.cache.identity import MeasuredFiles, cache_digest
from cloister.kbs.client import BrokerAdmin
from cloister.policy.cedar import UNSAFE_SIMULATED_POLICY, shipped
from cloister.settings import load_settings
from tests.kbs.broker_process import MR_CONFIG_ID, MR_TD, REFERENCE, Tee
from tests.ports import free_port

START_S = 30.0
__all__ = ["Running", "Site", "free_port", "new_site"]

RUN = (
    "import json, sys\n"
    "from cloister.cli.output import show_error\n"
    "from cloister.errors import CloisterError\n"
    "from cloister.kbs.cache.service import run_cache\n"
    "from cloister.kbs.server import run_broker\n"
    "from cloister.settings import load_settings\n"
    "settings = load_settings(None, {}, json.loads(sys.argv[2]))\n"
    "try:\n"
    "    run_cache(settings) if sys.argv[1] == 'cache' else run_broker(settings.keys)\n"
    "except CloisterError as error:\n"
    "    show_error(error)\n"
    "    sys.exit(error.exit_code)\n"
)


class Running:
    """A process that logs JSON lines, the first of which with ``listening`` says where."""

    def __init__(self, kind: str, flags: dict[str, Any]) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUN, kind, json.dumps(flags)], stderr=subprocess.PIPE, text=True
        )
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_listening(self) -> dict[str, Any]:
        """The line that says where it listens."""
        assert self._listening.wait(START_S), self.lines
        found = [event for event in self.events() if event["event"] == "listening"]
        assert found, self.lines
        return found[0]

    def events(self) -> list[dict[str, Any]]:
        """Everything that was logged so far."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def wait_for(self, event: str) -> dict[str, Any]:
        """The first log line of a kind."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for found in self.events():
                if found["event"] == event:
                    return found
            time.sleep(0.02)
        raise AssertionError((event, self.lines))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        code = self._process.wait(START_S)
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()
        return code

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            if '"listening"' in line:
                self._listening.set()
        self._listening.set()


@dataclass
class Site:
    """Folders, ports and settings; ``with site.broker():`` and ``with site.cache():`` run the processes."""

    folder: Path
    platform: SimulatedPlatform
    broker_port: int = field(default_factory=free_port)
    digests: set[str] = field(default_factory=lambda: {MR_CONFIG_ID.hex()})

    @classmethod
    def make(cls, folder: Path) -> Site:
        """All files that both sides need before they start."""
        platform = SimulatedPlatform.create(folder / "platform", datetime.now(UTC))
        (folder / "release.cedar").write_text(shipped(UNSAFE_SIMULATED_POLICY))
        (folder / "siblings.toml").write_text(REFERENCE)
        site = cls(folder, platform)
        site.accept()
        return site

    def accept(self, *digests: str) -> None:
        """List settings digests in the broker's reference values; it reads them again by itself."""
        self.digests.update(digests)
        mr_td = [measure_package(installed_package()).hex(), MR_TD.hex()]
        (self.folder / "reference.toml").write_text(
            "allow_simulated = true\n[tdx]\n"
            f"mr_td = {json.dumps(mr_td)}\nmr_config_id = {json.dumps(sorted(self.digests))}\n"
        )

    @property
    def url(self) -> str:
        """Of the broker."""
        return f"https://127.0.0.1:{self.broker_port}"

    @property
    def ca(self) -> Path:
        """The broker's certificate."""
        return self.folder / "keys" / "tls.pem"

    def admin(self) -> BrokerAdmin:
        """The owner."""
        return BrokerAdmin(self.url, token=(self.folder / "keys" / "admin.token").read_text(), ca=self.ca)

    def tee(self, **quote: Any) -> Tee:
        """A sibling TEE whose quotes are changed as given."""
        return Tee(self.platform, quote)

    @contextlib.contextmanager
    def broker(self) -> Iterator[Running]:
        """The broker's process."""
        flags = {
            "keys.folder": str(self.folder / "keys"),
            "keys.port": self.broker_port,
            "keys.reference_values": str(self.folder / "reference.toml"),
            "keys.policy": str(self.folder / "release.cedar"),
            "keys.collateral": str(self.folder / "platform" / "collateral.json"),
            "keys.simulated_root": str(self.folder / "platform" / "root.pem"),
        }
        running = Running("broker", flags)
        try:
            running.wait_listening()
            yield running
        finally:
            running.stop()

    def cache_flags(self, name: str, **changes: Any) -> dict[str, Any]:
        """Settings of a cache."""
        settings = {
            "broker": self.url,
            "broker_ca": str(self.ca),
            "socket": str(self.folder / f"{name}.sock"),
            "collateral": str(self.folder / "platform" / "collateral.json"),
            "simulated_root": str(self.folder / "platform" / "root.pem"),
            "reference_values": str(self.folder / "siblings.toml"),
            "policy": str(self.folder / "release.cedar"),
            "certificate": str(self.folder / f"{name}.pem"),
            **changes,
        }
        return {
            **{f"cache.{key}": value for key, value in settings.items()},
            "attest.attester": "simulated-tdx",
            "attest.simulated_platform": str(self.folder / "platform"),
        }

    def digest(self, flags: dict[str, Any]) -> str:
        """What a cache with these settings proves."""
        settings = load_settings(None, {}, flags)
        return cache_digest(settings, MeasuredFiles.read(settings.cache)).hex()

    @contextlib.contextmanager
    def cache(self, name: str, *, accepted: bool = True, **changes: Any) -> Iterator[Running]:
        """A cache's process; the owner has listed its settings, unless not ``accepted``."""
        flags = self.cache_flags(name, **changes)
        if accepted:
            self.accept(self.digest(flags))
        running = Running("cache", flags)
        try:
            running.wait_listening()
            yield running
        finally:
            running.stop()

    def local(self, name: str) -> CacheClient:
        """A process on the cache's machine."""
        return CacheClient(self.folder / f"{name}.sock")


@contextlib.contextmanager
def new_site() -> Iterator[Site]:
    """A site in a temporary folder with a short name, which sockets need, and which others may enter."""
    with tempfile.TemporaryDirectory(prefix="site-") as name:
        os.chmod(name, 0o755)
        yield Site.make(Path(name))

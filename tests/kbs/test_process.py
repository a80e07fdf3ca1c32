"""The broker as a process of its own: it says where it listens, and stops when it is told to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import ConfigError
from cloister.kbs.client import BrokerClient
from cloister.kbs.server import bind, run_broker
from cloister.settings import KeysSettings
from tests.kbs.broker_process import Tee

PROGRAM = """
import sys
from cloister.kbs.server import run_broker
from cloister.settings import KeysSettings
run_broker(KeysSettings(folder=sys.argv[1], port=0))
"""


def test_starts_answers_and_stops(tmp_path: Path, platform: SimulatedPlatform) -> None:
    """On first start it logs URL and certificate as JSON; on SIGTERM it ends with 0."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "keys")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = json.loads(process.stderr.readline())
            assert line["event"] == "listening"
            with (
                BrokerClient(line["url"], attester=Tee(platform), ca=Path(line["certificate"])) as client,
                pytest.raises(Exception, match="refused the attestation"),
            ):
                client.get_resource("kbs:///a/b/c")
        finally:
            process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0
    assert [json.loads(text)["event"] for text in rest.splitlines()] == ["refused", "stopped"]


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """An address in use, or an unknown host, is a configuration error."""
    with bind("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="cannot listen"):
        run_broker(KeysSettings(folder=str(tmp_path), port=taken.getsockname()[1]))


@pytest.mark.parametrize(
    "setting", ["reference_values", "policy", "collateral", "simulated_root", "kek", "database"]
)
def test_bad_settings_stop_the_start(tmp_path: Path, setting: str) -> None:
    """A file that is named but missing, or a URI that is none, stops the broker at once."""
    settings = KeysSettings(folder=str(tmp_path), port=0, **{setting: "/nonexistent/file"})
    with pytest.raises(ConfigError):
        run_broker(settings)

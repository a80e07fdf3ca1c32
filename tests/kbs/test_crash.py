"""``kill -9`` at random moments during writes: nothing acknowledged is lost, and the audit chain is whole."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import CloisterError
from cloister.kbs.audit import read_audit_log, verify_audit_log
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.records import load_version
from cloister.kbs.state import open_state
from tests.kbs.broker_subprocess import BrokerProcess


class Load:
    """Writes and reads as fast as it can, and remembers what was acknowledged."""

    def __init__(self, broker: BrokerProcess, round_number: int) -> None:
        self.stored: dict[str, bytes] = {}
        self.released = 0
        self._broker, self._round = broker, round_number
        self._threads = [
            threading.Thread(target=run) for run in (self._store, self._store_more, self._release)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until every thread has noticed that the broker is gone."""
        for thread in self._threads:
            thread.join(30)

    def _store(self, lane: str = "a") -> None:
        with self._broker.admin() as admin:
            try:
                for number in range(10_000):
                    data = f"{self._round}-{lane}-{number}".encode() * 3
                    version = admin.put_version(f"kbs:///crash/{lane}/key", data)
                    self.stored[f"crash/{lane}/key?version={version}"] = data
            except CloisterError:
                return

    def _store_more(self) -> None:
        self._store("b")

    def _release(self) -> None:
        with self._broker.client() as client:
            try:
                for _ in range(10_000):
                    client.get_resource("kbs:///models/key/digits")
                    self.released += 1
            except CloisterError:
                return


def crash(folder: Path, platform: SimulatedPlatform, rounds: int, seed: int) -> None:
    """Start, load, kill and check, again and again on one database."""
    moments = random.Random(seed)
    stored: dict[str, bytes] = {}
    released = 0
    with BrokerProcess(folder, platform) as broker, broker.admin() as admin:
        admin.put_resource("kbs:///models/key/digits", b"CANARY" * 4)
    for number in range(rounds):
        broker = BrokerProcess(folder, platform)
        load = Load(broker, number)
        time.sleep(moments.uniform(0.05, 0.8))
        broker.kill()
        load.join()
        stored |= load.stored
        released += load.released
        summary = verify_audit_log(broker.settings)
        assert summary.releases >= released
        check(broker, stored)
    assert stored
    assert released


def check(broker: BrokerProcess, stored: dict[str, bytes]) -> None:
    """Every acknowledged key is there with its value, and so is its audit entry."""
    entries = {row["resource"] for row in read_audit_log(broker.settings) if row["kind"] == "stored"}
    state = open_state(broker.settings, datetime.now(UTC))
    try:
        with state.database.read() as session:
            for uri, data in stored.items():
                path = ResourcePath.from_uri(f"kbs:///{uri}")
                assert load_version(session, state.kek, path)[0] == data, uri
                assert uri in entries
    finally:
        state.close()


def test_killed_five_times(platform: SimulatedPlatform, tmp_path: Path) -> None:
    """Five random moments, for every run of the tests."""
    crash(tmp_path, platform, 5, seed=time.time_ns())


@pytest.mark.slow
def test_killed_fifty_times(platform: SimulatedPlatform, tmp_path: Path) -> None:
    """Fifty random moments on one database: the bar."""
    crash(tmp_path, platform, 50, seed=50)

"""From settings to access control."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import BadSignature, CloisterError, ConfigError
from cloister.kbs.audit import read_audit_key
from cloister.kbs.audit_file import verify_export_file
from cloister.serve.access.control import AccessControl, Forbidden
from cloister.serve.access.setup import start_access_control
from cloister.serve.server import asks_who_calls
from cloister.settings import ServeSettings


def start(ask: bool = False, **settings: Any) -> None:
    """Bring it up and take it down; with ``ask`` an anonymous prediction in between."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            control: AccessControl = await start_access_control(ServeSettings(**settings), stack)
            if ask:
                control.admit("predict", "m", "", "open", [])

    asyncio.run(run())


def test_modes() -> None:
    """Without a policy an open server lets everybody in, and a protected one nobody."""
    start(ask=True, mode="open", rate_per_s=100.0)
    with pytest.raises(Forbidden):
        start(ask=True, mode="protected")


def test_an_open_server_decides_only_if_told_to() -> None:
    """Any of the settings is enough."""
    assert not asks_who_calls(ServeSettings(mode="open"))
    for setting in (
        {"access_policy": "x"},
        {"quota_per_day": 1},
        {"decision_log": "x"},
        {"jwt_audience": "x"},
    ):
        assert asks_who_calls(ServeSettings(mode="open", **setting))


@pytest.mark.parametrize(
    "settings",
    [
        {"access_policy": "/nonexistent.cedar"},
        {"mode": "open", "api_keys": "keys.jsonl"},
        {"jwt_issuer": "https://issuer.example"},
        {"jwt_audience": "models"},
        {"jwt_issuer": "http://issuer.example", "jwt_audience": "models"},
        {"decision_log_key": "x"},
        {"api_keys": "/nonexistent"},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    """What would weaken a server, or mean nothing, stops its start."""
    with pytest.raises(ConfigError):
        start(**settings)


def test_log_with_a_key_of_its_own(tmp_path: Path) -> None:
    """With a key file the log goes on from run to run; with another key it is refused."""
    log, key = tmp_path / "log", tmp_path / "key"
    for _ in range(2):
        start(ask=True, mode="open", decision_log=str(log), decision_log_key=str(key))
    assert verify_export_file(log, read_audit_key(tmp_path / "log.pub")).entries == 2
    key.unlink()
    with pytest.raises((BadSignature, CloisterError)):
        start(mode="open", decision_log=str(log), decision_log_key=str(key))


def test_log_with_a_key_of_each_run(tmp_path: Path) -> None:
    """Without one each run has a log and a key of its own, and the former ones are kept beside it."""
    log = tmp_path / "log"
    for _ in range(2):
        start(ask=True, mode="open", decision_log=str(log))
    logs = [path for path in tmp_path.iterdir() if path.suffix != ".pub"]
    assert len(logs) == 2
    for path in logs:
        public = read_audit_key(path.with_name(path.name + ".pub"))
        assert verify_export_file(path, public).entries == 1

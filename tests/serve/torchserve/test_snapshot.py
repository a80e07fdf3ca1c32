"""Models that a configuration names in ``model_snapshot``, as KServe's do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ConfigError
from cloister.serve.torchserve.snapshot import read_snapshot
from tests.processes.server import pack
from tests.serve.torchserve.launch import NOOP, TorchServe


def snapshot(**versions: dict[str, Any]) -> str:
    """A snapshot of one model in the form that KServe writes."""
    models = {"m": {name.replace("v", "").replace("_", "."): facts for name, facts in versions.items()}}
    return json.dumps({"name": "startup.cfg", "modelCount": 1, "models": models})


def test_default_comes_first() -> None:
    """Archives are listed by their models' names, the default version of each before the others."""
    first, second = {"marName": "a.mar"}, {"marName": "b.mar", "defaultVersion": True}
    found = read_snapshot(snapshot(v1_0=first, v2_0=second))
    assert found.load_models == ["m=b.mar", "m=a.mar"]
    assert found.models["m"]["2.0"]["marName"] == "b.mar"
    assert read_snapshot('{"modelCount": 0}').load_models == []


@pytest.mark.parametrize("text", ["{", "[]", '{"models": {"m": []}}', snapshot(v1_0={"minWorkers": 1})])
def test_what_is_none(text: str) -> None:
    """Another form, or a model without an archive, is one line that names the key."""
    with pytest.raises(ConfigError, match="model_snapshot"):
        read_snapshot(text)


def test_a_server_starts_with_them(tmp_path: Path) -> None:
    """The models are there, with their numbers, and the default version answers; other lists do not count."""
    (tmp_path / "store").mkdir()
    for version in ("1.0", "2.0"):
        shutil.move(pack(tmp_path, "m", NOOP, version=version), tmp_path / "store" / f"m{version}.mar")
    facts = {"minWorkers": 1, "maxWorkers": 3, "batchSize": 4, "maxBatchDelay": 7, "responseTimeout": 60}
    text = snapshot(
        v1_0={**facts, "marName": "m1.0.mar", "defaultVersion": True},
        v2_0={**facts, "marName": "m2.0.mar", "batchSize": 5},
    )
    properties = {"model_snapshot": text, "load_models": "absent.mar", "enable_envvars_config": "true"}
    with TorchServe(tmp_path, properties, ("--disable-token-auth",)) as server:
        described = server.manage("GET", "/models/m/all").json()
        assert {item["modelVersion"]: item["batchSize"] for item in described} == {"1.0": 4, "2.0": 5}
        assert {item["maxWorkers"] for item in described} == {3}
        assert server.manage("GET", "/models/m").json()[0]["modelVersion"] == "1.0"
        assert server.predict("/predictions/m", content=b"x").text == "OK"

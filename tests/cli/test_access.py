"""``cloister access`` as people use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.access import app
from cloister.errors import ConfigError

RUN = CliRunner()


def test_policy(tmp_path: Path) -> None:
    """A decision is explained, and the exit code says which it is."""
    path = tmp_path / "p.cedar"
    path.write_text(
        '@id("team") permit (principal in Group::"a", action, resource) when { context.way == "tls" };'
    )
    allowed = RUN.invoke(app, ["test", str(path), "--model", "m/1", "--group", "a", "--way", "tls"])
    assert (allowed.exit_code, allowed.stdout) == (0, "allowed: permitted by team\n")
    refused = RUN.invoke(app, ["test", str(path), "--model", "m/1", "--group", "a", "--json"])
    assert refused.exit_code == 3
    assert "context.way" in json.loads(refused.stdout)["reason"]
    path.write_text("permit (principal, action, resource) when { context.typo };")
    assert isinstance(RUN.invoke(app, ["test", str(path)]).exception, ConfigError)
    assert isinstance(RUN.invoke(app, ["test", str(path), "--action", "x"]).exception, ConfigError)


def test_keys(tmp_path: Path) -> None:
    """A key is shown once; the list shows everything else."""
    file = ["-f", str(tmp_path / "keys.jsonl")]
    key = RUN.invoke(app, ["key", "add", "ci", "--tenant", "acme", "--days", "30", *file]).stdout.strip()
    assert key.startswith("clk_")
    listed = RUN.invoke(app, ["key", "list", "--json", *file]).stdout
    assert key not in listed
    assert json.loads(listed)[0]["tenant"] == "acme"
    assert "ci" in RUN.invoke(app, ["key", "list", *file]).stdout
    assert RUN.invoke(app, ["key", "remove", "ci", *file]).exit_code == 0
    with pytest.raises(ConfigError):
        RUN.invoke(app, ["key", "remove", "ci", *file], catch_exceptions=False)


@pytest.mark.parametrize("days", ["nan", "inf", "-1", "0", "1e12"])
def test_days_of_a_key(tmp_path: Path, days: str) -> None:
    """A key that could never be used is not made, and no number of days is a fault."""
    file = tmp_path / "keys.jsonl"
    made = RUN.invoke(app, ["key", "add", "ci", "--days", days, "-f", str(file)])
    assert (made.exit_code, made.stdout) == (2, "")
    assert not file.exists()


def test_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    """Groups and tenants are names, and no markup."""
    file = ["-f", str(tmp_path / "keys.jsonl")]
    RUN.invoke(app, ["key", "add", "ci", "--tenant", "[/x]", "--group", "[red]", "--group", ":key:", *file])
    listed = RUN.invoke(app, ["key", "list", *file])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in ("[/x]", "[red]", ":key:"))

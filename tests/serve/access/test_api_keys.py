"""API keys: shown once, kept as hashes, good until they are removed or expire."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.serve.access.api_keys import find_record, make_api_key, read_api_keys, remove_api_key

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_life_of_a_key(tmp_path: Path) -> None:
    """Made, found by its own bytes only, expired, removed; the file never holds it."""
    path = tmp_path / "keys.jsonl"
    key = make_api_key(path, "ci", now=NOW, tenant="acme", groups=("robots",))
    short = make_api_key(path, "brief", now=NOW, expires=NOW + timedelta(hours=1))
    assert path.stat().st_mode & 0o077 == 0
    assert key not in path.read_text()
    records = read_api_keys(path)
    record = find_record(records, key.encode(), NOW)
    assert record is not None
    caller = record.caller()
    assert (caller.name, caller.tenant, caller.groups) == ("api-key:ci", "acme", ("robots",))
    assert find_record(records, key.encode()[:-1], NOW) is None
    assert find_record(records, short.encode(), NOW) is not None
    assert find_record(records, short.encode(), NOW + timedelta(hours=1)) is None
    remove_api_key(path, "ci")
    assert find_record(read_api_keys(path), key.encode(), NOW) is None


def test_writers_at_once(tmp_path: Path) -> None:
    """Keys that are made at the same time are all there."""
    path = tmp_path / "keys.jsonl"
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda number: make_api_key(path, f"n{number}", now=NOW), range(40)))
    records = read_api_keys(path)
    assert all(find_record(records, key.encode(), NOW) for key in keys)
    with pytest.raises(ConfigError):
        make_api_key(tmp_path / "none" / "keys.jsonl", "ci", now=NOW)


def test_names(tmp_path: Path) -> None:
    """A name is taken once, and looks like one."""
    path = tmp_path / "keys.jsonl"
    make_api_key(path, "a", now=NOW)
    for name in ("a", "", "a b", "ü", "x" * 200):
        with pytest.raises(ConfigError):
            make_api_key(path, name, now=NOW)
    with pytest.raises(ConfigError):
        remove_api_key(path, "b")


@given(st.text(max_size=80))
def test_garbage(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """A file that is none is an error of configuration."""
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    path.write_text(text, encoding="utf-8", errors="replace")
    if text.strip():
        with pytest.raises(ConfigError):
            read_api_keys(path)

"""What a cache proves: its settings, and exactly the content of the files that it then uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from cloister.attest.simulated import SimulatedPlatform
from cloister.cli.main import app
from cloister.errors import ConfigError
from cloister.kbs.cache.identity import MEASURED_FILES, MeasuredFiles, cache_digest, file_in_memory
from cloister.policy.cedar import UNSAFE_SIMULATED_POLICY, shipped
from cloister.settings import CacheSettings, KeysSettings, Settings
from tests.kbs.broker_process import REFERENCE


def digest(**changes: Any) -> bytes:
    cache = CacheSettings(**changes)
    return cache_digest(Settings(cache=cache), MeasuredFiles.read(cache))


@pytest.mark.parametrize(
    "changes",
    [
        {"allowed_uids": (0, 7)},
        {"lease_s": 1.0},
        {"uris": ("kbs:///a/b/c",)},
        {"require_locked_memory": False},
    ],
)
def test_every_setting_counts(changes: dict[str, Any]) -> None:
    """Another setting is another digest, of 48 bytes."""
    assert digest(**changes) != digest()
    assert len(digest()) == 48


@pytest.mark.parametrize("name", MEASURED_FILES)
def test_every_file_counts(tmp_path: Path, name: str) -> None:
    """The same settings with another content of a file are another digest."""
    file = tmp_path / "file"
    file.write_text("one")
    first = digest(**{name: str(file)})
    file.write_text("two")
    assert digest(**{name: str(file)}) != first


def test_other_processes_settings_do_not_count() -> None:
    """What the broker's or a server's section says does not change a cache."""
    files = MeasuredFiles.read(CacheSettings())
    assert cache_digest(Settings(keys=KeysSettings(port=1)), files) == cache_digest(Settings(), files)


def test_what_was_measured_is_what_is_used(tmp_path: Path, platform: SimulatedPlatform) -> None:
    """A file that is exchanged after it was measured has no effect."""
    contents = {
        "reference_values": REFERENCE.encode(),
        "policy": shipped(UNSAFE_SIMULATED_POLICY).encode(),
        "simulated_root": platform.root.public_bytes(Encoding.PEM),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = MeasuredFiles.read(CacheSettings(**{name: str(tmp_path / name) for name in contents}))
    for name in contents:
        (tmp_path / name).write_text("exchanged")
    assert "tdx" in files.parse_reference_values().tables
    assert files.parse_policy() is not None
    root = files.parse_simulated_root()
    assert isinstance(root, x509.Certificate)
    assert root == platform.root


@pytest.mark.parametrize("name", ["reference_values", "policy", "simulated_root"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    """A file of another form, an empty one, and one that is not there are configuration errors."""
    file = tmp_path / "file"
    file.write_bytes(b"\xff\xfe not this")
    parse = {
        "reference_values": MeasuredFiles.parse_reference_values,
        "policy": MeasuredFiles.parse_policy,
        "simulated_root": MeasuredFiles.parse_simulated_root,
    }[name]
    settings = CacheSettings(**{name: str(file)})
    with pytest.raises(ConfigError, match="cache"):
        parse(MeasuredFiles.read(settings))
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="is empty"):
        MeasuredFiles.read(settings)
    file.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        MeasuredFiles.read(settings)


def test_without_files() -> None:
    """No reference values accept nobody; without a policy the shipped one decides; no simulated root."""
    files = MeasuredFiles.read(CacheSettings())
    assert files.parse_reference_values().tables == {}
    assert files.parse_simulated_root() is None


def test_a_file_in_memory_is_gone_afterwards() -> None:
    """The path holds the content during the block, and not after it."""
    with file_in_memory(b"content") as path:
        assert path.read_bytes() == b"content"
    assert not path.exists()


def test_the_command_prints_the_digest(tmp_path: Path) -> None:
    """``cloister keys cache --digest`` says what the owner has to list."""
    config = tmp_path / "cache.toml"
    config.write_text('[cache]\nuris = ["kbs:///a/b/c"]\nallowed_uids = [7]\n')
    done = CliRunner().invoke(app, ["keys", "cache", "-c", str(config), "--digest"])
    assert done.exit_code == 0
    assert done.stdout.strip() == digest(uris=("kbs:///a/b/c",), allowed_uids=(7,)).hex()

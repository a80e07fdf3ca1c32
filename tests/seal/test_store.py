"""The model store: verified on the way in and on the way out, and never back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.errors import (
    ConfigError,
    MalformedInput,
    ModelNotFound,
    RollbackRefused,
    UntrustedRoot,
    VerificationError,
)
from cloister.seal import ModelStore, TrustedSigners
from tests.seal.conftest import OTHER_SIGNER, TRUSTED


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty store."""
    return ModelStore(tmp_path / "store", TRUSTED)


def test_versions_are_kept_and_the_newest_found(store: ModelStore, seal: Any) -> None:
    """Newest means the highest sequence, not the highest version text."""
    for version, sequence in (("9.0", 1), ("10.0", 2)):
        entry = store.add(seal(version=version, sequence=sequence).path)
        assert entry.path.name == f"{version}.sealed"
    store.add(seal(name="other", version="1", sequence=0).path)
    assert [(e.header.name, e.header.version) for e in store.list()] == [
        ("digits", "9.0"),
        ("digits", "10.0"),
        ("other", "1"),
    ]
    assert store.newest("digits").header.version == "10.0"
    assert store.get("digits", "9.0").header.sequence == 1


def test_older_sequence_is_refused(store: ModelStore, seal: Any) -> None:
    """Neither an older container nor another one of the same sequence goes in; the store is unchanged."""
    store.add(seal(version="2", sequence=5).path)
    for version, sequence in (("1", 4), ("3", 5), ("2", 4)):
        with pytest.raises(RollbackRefused):
            store.add(seal(version=version, sequence=sequence).path)
    assert [entry.header.version for entry in store.list()] == ["2"]


def test_same_bytes_again_change_nothing(store: ModelStore, seal: Any) -> None:
    """Adding is repeatable; other bytes under the same version and sequence are refused."""
    container = seal().path
    assert store.add(container) == store.add(container)
    with pytest.raises(RollbackRefused, match="other bytes"):
        store.add(seal().path)


def test_version_is_replaced_by_a_higher_sequence(store: ModelStore, seal: Any) -> None:
    """The same version may come again if its owner sealed it with a higher sequence."""
    store.add(seal(sequence=1).path)
    replacement = seal(b"better", sequence=2)
    entry = store.add(replacement.path)
    assert entry.path.read_bytes() == replacement.path.read_bytes()
    assert len(store.list()) == 1


def test_removed_newest_is_noticed(store: ModelStore, seal: Any) -> None:
    """Taking the newest container away does not bring an older one back to life."""
    store.add(seal(version="1", sequence=1).path)
    store.add(seal(version="2", sequence=2).path).path.unlink()
    with pytest.raises(RollbackRefused):
        store.newest("digits")


def test_untrusted_or_damaged_container_stays_out(store: ModelStore, seal: Any) -> None:
    """What does not verify is not copied in."""
    with pytest.raises(UntrustedRoot):
        store.add(seal(signer=OTHER_SIGNER).path)
    damaged = seal().path
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(VerificationError):
        store.add(damaged)
    assert store.list() == ()


def test_container_changed_in_the_store_is_not_given_out(store: ModelStore, seal: Any) -> None:
    """A file that was exchanged or renamed inside the store is refused, and left out of the list."""
    entry = store.add(seal(version="1").path)
    entry.path.rename(entry.path.with_name("2.sealed"))
    with pytest.raises(MalformedInput, match="holds digits 1"):
        store.get("digits", "2")
    assert store.list() == ()
    with pytest.raises(UntrustedRoot):
        ModelStore(entry.path.parents[1], TrustedSigners()).newest("digits")


@pytest.mark.parametrize(
    ("name", "version"), [("none", "1"), ("digits", "2"), ("..", "1"), ("digits", "../digits/1")]
)
def test_unknown_names_are_not_found(store: ModelStore, seal: Any, name: str, version: str) -> None:
    """A name or version that is not there is not found, also where it looks like a path."""
    store.add(seal(version="1").path)
    with pytest.raises(ModelNotFound):
        store.get(name, version)
    if name != "digits":
        with pytest.raises(ModelNotFound):
            store.newest(name)


def test_damaged_record_stops_the_store(store: ModelStore, seal: Any, tmp_path: Path) -> None:
    """A record that cannot be read is an error, not a fresh start."""
    store.add(seal().path)
    (tmp_path / "store" / "sequences.json").write_text('{"digits": "one"}')
    with pytest.raises(MalformedInput):
        store.newest("digits")
    with pytest.raises(ConfigError):
        store.add(tmp_path / "none")

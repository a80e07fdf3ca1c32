"""Sealing: whole or not at all, and only what was there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ConfigError, MalformedInput
from cloister.seal import open_sealed, seal_file
from tests.seal.conftest import CREATED, KEY, SIGNER, TRUSTED

FIELDS: dict[str, Any] = {
    "key": KEY,
    "signer": SIGNER,
    "name": "digits",
    "version": "1",
    "sequence": 3,
    "kind": "mar",
    "key_uri": "kbs:///models/dek/digits",
    "created": CREATED,
}


def test_reports_header_and_progress(tmp_path: Path) -> None:
    """The returned header is the one in the container; progress rises to the whole size."""
    source, target, seen = tmp_path / "plain", tmp_path / "sealed", list[int]()
    source.write_bytes(os.urandom(2_500_000))
    header = seal_file(source, target, **FIELDS, progress=seen.append)
    assert seen == [1 << 20, 2 << 20, 2_500_000]
    assert target.stat().st_mode & 0o777 == 0o644
    with open_sealed(target, key=KEY, trusted=TRUSTED) as sealed:
        assert sealed.header == header
        assert (header.created, header.sequence, header.key_version) == ("2026-01-31T12:00:00Z", 3, 1)
        assert sealed.readall() == source.read_bytes()


def test_container_shows_nothing_of_its_payload(seal: Any) -> None:
    """No run of the plaintext can be found in the container."""
    sealed = seal(b"def handle(data, context): ..." * 100)
    assert b"handle" not in sealed.path.read_bytes()


@pytest.mark.parametrize(
    "field", [("name", "../digits"), ("version", "a/b"), ("sequence", -1), ("key_uri", "x")]
)
def test_bad_fields_write_nothing(tmp_path: Path, field: tuple[str, Any]) -> None:
    """A field out of its form is refused and leaves no file behind."""
    (tmp_path / "plain").write_bytes(b"x")
    with pytest.raises(MalformedInput):
        seal_file(tmp_path / "plain", tmp_path / "sealed", **{**FIELDS, field[0]: field[1]})
    assert os.listdir(tmp_path) == ["plain"]


@pytest.mark.parametrize("delta", [-1000, 1000, 3_000_000])
def test_source_that_changes_size_is_refused(tmp_path: Path, delta: int) -> None:
    """A source that grows or shrinks while it is read gives an error, and the old target stays."""
    source, target = tmp_path / "plain", tmp_path / "sealed"
    source.write_bytes(bytes(2_000_000))
    target.write_bytes(b"old")

    def change(_: int) -> None:
        os.truncate(source, 2_000_000 + delta)

    with pytest.raises(MalformedInput, match="changed size"):
        seal_file(source, target, **FIELDS, progress=change)
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["plain", "sealed"]


def test_unreadable_source_and_target(tmp_path: Path) -> None:
    """A file that is not there and a folder that is not there are configuration errors."""
    with pytest.raises(ConfigError):
        seal_file(tmp_path / "none", tmp_path / "sealed", **FIELDS)
    (tmp_path / "plain").write_bytes(b"x")
    with pytest.raises(ConfigError):
        seal_file(tmp_path / "plain", tmp_path / "no" / "sealed", **FIELDS)

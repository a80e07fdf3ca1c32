"""A model's files in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.engines.files import ModelFiles
from cloister.errors import ConfigError


def test_a_folders_files_are_mapped(tmp_path: Path) -> None:
    """They can be read by their paths, not written, and outlive the object that mapped them."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights.bin").write_bytes(b"weights")
    (tmp_path / "empty").touch()
    files = ModelFiles.from_folder(tmp_path)
    content = files.read("deep/weights.bin")
    assert content.readonly
    assert list(files.names()) == ["deep/weights.bin", "empty"]
    assert files.read("empty") == b""
    files.close()
    assert content == b"weights"


def test_single_files_have_places(tmp_path: Path) -> None:
    """What an owner packs has other names than paths; a library's place can be asked for, bytes' cannot."""
    (tmp_path / "here.so").write_bytes(b"code")
    files = ModelFiles.from_paths({"model.so": tmp_path / "here.so"})
    assert files.path("model.so") == tmp_path / "here.so"
    assert files.read("model.so") == b"code"
    assert list(files.names()) == ["model.so"]
    with pytest.raises(ConfigError, match="can be loaded from its place"):
        ModelFiles({"model.so": b"code"}).path("model.so")


def test_buffers_are_files_too() -> None:
    """Bytes under a name are found by it."""
    files = ModelFiles({"model.xml": b"<net/>", "model.bin": b""})
    assert files.read("model.xml") == b"<net/>"
    assert files.beside("model.xml", ".bin") in files


@pytest.mark.parametrize("name", ["missing", "../outside", "/etc/hostname", "", "deep/../../outside"])
def test_nothing_outside_is_read(tmp_path: Path, name: str) -> None:
    """A name that is not of a file inside is an error that says so."""
    (tmp_path / "outside").touch()
    (tmp_path / "in").mkdir()
    files = ModelFiles.from_folder(tmp_path / "in")
    assert name not in files
    with pytest.raises(ConfigError, match="the archive has no file"):
        files.read(name)

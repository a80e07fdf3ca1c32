"""Members go straight into their files, and a full disk or a bad member leaves a clear error."""

from __future__ import annotations

import errno
import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

from cloister.errors import ConfigError, MalformedInput
from cloister.serve.unpack import protect_folder, unpack_archive


def archive(content: bytes, method: int = zipfile.ZIP_STORED) -> io.BytesIO:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as out:
        out.writestr("empty", b"")
        out.writestr("sub/model.bin", content, method)
    return target


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("authentic", [False, True])
@pytest.mark.parametrize("size", [1, 4095, (1 << 22) + 17])
def test_content(tmp_path: Path, method: int, authentic: bool, size: int) -> None:
    """Every byte arrives, stored or deflated, over the edges of pieces, and empty files too."""
    content = os.urandom(size)
    unpack_archive(archive(content, method), tmp_path, authentic=authentic)
    assert (tmp_path / "sub" / "model.bin").read_bytes() == content
    assert (tmp_path / "empty").read_bytes() == b""


def test_no_second_copy_is_read(tmp_path: Path) -> None:
    """A stored member is read into its file's pages in large pieces, never as bytes of its own."""

    class Watched(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.largest = max(self.largest, len(found))
            return found

    source = Watched(archive(os.urandom(1 << 23)).getvalue())
    unpack_archive(source, tmp_path)
    assert source.largest < 1 << 17


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is said in words; without the reservation the process would end by a signal."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="No space left"):
        unpack_archive(archive(b"x" * 100), tmp_path)


def test_shorter_than_it_says(tmp_path: Path) -> None:
    """A member that ends with the archive before its length is malformed."""
    raw = archive(b"x" * 5000).getvalue()

    class Short(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
            return 0

    with pytest.raises(MalformedInput, match="shorter"):
        unpack_archive(Short(raw), tmp_path)


def test_protect(tmp_path: Path) -> None:
    """A protected model's files and folders lose write permission."""
    unpack_archive(archive(b"x"), tmp_path)
    protect_folder(tmp_path)
    try:
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path, *tmp_path.rglob("*"))}
        assert modes == {0o400, 0o500}
    finally:
        for path in (tmp_path, *tmp_path.rglob("*")):
            path.chmod(0o700)

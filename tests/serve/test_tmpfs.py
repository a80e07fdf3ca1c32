"""Private folders: in memory, owner-only, gone afterwards, and cleaned up after others."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve import tmpfs
from cloister.serve.tmpfs import PrivateFolder, filesystem_type, remove_stale, require_memory

MOUNTS = """22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:25 / /dev/shm rw,nosuid shared:4 - tmpfs tmpfs rw
31 22 0:26 / /mnt/with\\040space rw - tmpfs tmpfs rw
32 30 254:1 / /dev/shm/disk rw - xfs /dev/vdb rw
33 22 0:27 / /over rw - tmpfs tmpfs rw
34 22 254:1 / /over rw - ext4 /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dev/shm", "tmpfs"),
        ("/dev/shm/a/b", "tmpfs"),
        ("/dev/shm/disk/a", "xfs"),
        ("/dev/shmoo", "ext4"),
        ("/mnt/with space/x", "tmpfs"),
        ("/over/x", "ext4"),
        ("/", "ext4"),
    ],
)
def test_filesystem_type(path: str, kind: str) -> None:
    """The deepest and last mount decides, not a common prefix of letters."""
    assert filesystem_type(Path(path), MOUNTS) == kind


def test_memory_is_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder on a disk, or none, is refused."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text("22 1 254:0 / / rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr(tmpfs, "MOUNTINFO", mounts)
    with pytest.raises(ConfigError, match="expected tmpfs"):
        require_memory(tmp_path)
    with pytest.raises(ConfigError, match="not a folder"):
        require_memory(tmp_path / "none")


def test_folder_is_private_and_goes(tmp_path: Path) -> None:
    """The folder is owner-only and is removed with its content."""
    with PrivateFolder(tmp_path) as folder:
        inner = folder.make("model")
        (inner / "weights").write_bytes(b"1")
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert stat.S_IMODE(inner.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == []


def test_stale_folders_are_removed_living_ones_kept(tmp_path: Path) -> None:
    """A killed process's folder is removed by the next one, a living one's and a stranger's are not."""
    code = (
        "import sys, signal; from pathlib import Path; from cloister.serve.tmpfs import PrivateFolder\n"
        "f = PrivateFolder(Path(sys.argv[1])); print(f.path, flush=True); signal.pause()"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    stale = Path(child.stdout.readline().strip())
    assert remove_stale(tmp_path) == 0
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "cloister-serve-link").symlink_to(tmp_path / "other")
    with PrivateFolder(tmp_path) as mine:
        assert remove_stale(tmp_path) == 1
        assert mine.path.is_dir()
    assert not stale.exists()
    assert (tmp_path / "other").is_dir()


def test_parent_must_exist(tmp_path: Path) -> None:
    """A parent that is not there is a configuration error."""
    with pytest.raises(ConfigError):
        PrivateFolder(tmp_path / "none")
    assert not os.path.exists(tmp_path / "none")

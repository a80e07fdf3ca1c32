"""The folder of a search is private and is gone afterwards, however the search ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.optimize.workspace import PREFIX, Workspace, sweep


def test_only_its_owner_sees_it(tmp_path: Path) -> None:
    """Mode 0700, also of the folders within, and removed at the end."""
    with Workspace(tmp_path) as workspace:
        (workspace.folder("model") / "weights").write_bytes(b"secret")
        assert workspace.path.stat().st_mode & 0o777 == 0o700
        assert workspace.folder("model").stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
    workspace.close()


def test_an_error_removes_it_too(tmp_path: Path) -> None:
    """Ctrl-C is an exception like any other."""
    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def start(tmp_path: Path, then: str) -> subprocess.Popen[str]:
    """A process that has a workspace with a file in it."""
    code = (
        "import sys, time; from pathlib import Path; from cloister.optimize.workspace import Workspace\n"
        "w = Workspace(Path(sys.argv[1])); (w.path / 'weights').write_text('secret')\n"
        "print('ready', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code + then, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_nobody_needs_to_close_it(tmp_path: Path) -> None:
    """The end of the interpreter removes what an optimizer still holds."""
    with start(tmp_path, "pass") as process:
        process.wait(10)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """The next search removes it; that of a process that lives is left alone."""
    with start(tmp_path, "time.sleep(60)") as process:
        assert sweep(tmp_path) == 0
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
    with Workspace(tmp_path) as workspace:
        assert list(tmp_path.iterdir()) == [workspace.path]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A link of such a name does not make the sweep remove what it points to."""
    target = tmp_path / "mine"
    target.mkdir()
    (target / "lock").touch()
    (tmp_path / f"{PREFIX}x").symlink_to(target)
    sweep(tmp_path)
    assert (target / "lock").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """It is an error in words."""
    with pytest.raises(ConfigError, match="cannot make"):
        Workspace(tmp_path / "absent" / os.sep.join("ab"))

"""Locked secrets: out of swap, dumps and children, and gone when dropped."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cloister.crypto.locked import LockedSecret
from cloister.errors import ConfigError, MalformedInput

SECRET = bytes(range(100, 132))


def mapping_flags(address: int) -> set[str]:
    """The kernel's flags of the mapping around an address (proc(5), VmFlags)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            inside = begin <= address < end
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("no such mapping")


def test_bytes_come_back_and_are_not_shown() -> None:
    """A secret is lent as it was put in, read-only, and its repr says nothing of it."""
    secret = LockedSecret.of(SECRET)
    with secret.lend() as view:
        assert bytes(view) == SECRET
        with pytest.raises(TypeError):
            view[0] = 0
    assert SECRET.hex() not in repr(secret)
    assert len(secret) == len(SECRET)


def test_pages_are_locked_and_left_out_of_dumps_and_children() -> None:
    """The kernel says so: lo (locked), dd (not dumped), wf (wiped on fork)."""
    import ctypes

    secret = LockedSecret.of(SECRET)
    with secret.fill() as view:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    assert {"lo", "dd", "wf"} <= mapping_flags(address)
    assert secret.locked


def test_a_forked_child_sees_zeros() -> None:
    """What a child inherits is not the secret."""
    secret = LockedSecret.of(SECRET)
    child = os.fork()
    if not child:
        with secret.lend() as view:
            os._exit(0 if bytes(view) == bytes(len(SECRET)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_dropped_is_gone() -> None:
    """Nobody borrows a dropped secret, and dropping twice is nothing more."""
    secret = LockedSecret.of(SECRET)
    secret.drop()
    secret.drop()
    with pytest.raises(LookupError), secret.lend():
        pass


def test_a_drop_waits_for_its_borrowers() -> None:
    """Whoever has the bytes keeps them until the block ends; then they are overwritten."""
    secret = LockedSecret.of(SECRET)
    with secret.lend() as view:
        dropping = threading.Thread(target=secret.drop)
        dropping.start()
        dropping.join()
        assert bytes(view) == SECRET
    with pytest.raises(LookupError), secret.lend():
        pass


def test_an_empty_secret_is_none() -> None:
    """A secret has at least one byte."""
    with pytest.raises(MalformedInput):
        LockedSecret(0)


def test_a_limit_that_is_too_low_is_said() -> None:
    """Without the right to lock memory a secret is refused, or used unlocked where that was asked for."""
    program = (
        "import os, resource\n"
        "from cloister.crypto.locked import LockedSecret\n"
        "from cloister.errors import ConfigError\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "assert not LockedSecret(32, required=False).locked\n"
        "try:\n"
        "    LockedSecret(32)\n"
        "except ConfigError as error:\n"
        "    print(error.message, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "may lock 0 bytes" in done.stdout
    assert "LimitMEMLOCK" in done.stdout


def test_no_dumps() -> None:
    """After forbid_dumps the core limit is 0 and the process is not dumpable."""
    program = (
        "import resource\n"
        "from pathlib import Path\n"
        "from cloister.crypto.locked import forbid_dumps\n"
        "forbid_dumps()\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
        "import ctypes\n"
        "assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_locking_needs_the_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the limit that the process has."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    monkeypatch.setattr("cloister.crypto.locked.ctypes.CDLL", lambda *_, **__: _Refusing())
    with pytest.raises(ConfigError, match="4096"):
        LockedSecret(32)


class _Refusing:
    def mlock(self, *_: object) -> int:
        return -1

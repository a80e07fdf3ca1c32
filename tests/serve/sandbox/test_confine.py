"""What a process can still do after it has confined itself, whichever layers the machine has."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.serve.sandbox.plan import SandboxPlan
from tests.serve.sandbox.inside import TAKEN_AWAY, landlock_version, run_confined

ESCAPES = """
import socket
result = {
    "internet": attempt(socket.socket, socket.AF_INET, socket.SOCK_STREAM),
    "raw": attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW),
    "unix": attempt(socket.socket, socket.AF_UNIX, socket.SOCK_DGRAM),
    "write": attempt(lambda: open("/usr/lib/outside", "w")),
    "write beside": attempt(lambda: open(folder / "outside", "w").close()),
    "write model": attempt(lambda: open(folder / "model" / "new", "w")),
    "read": attempt(lambda: open(folder / "secret").read()),
    "environment of another": attempt(lambda: open(f"/proc/{os.getppid()}/environ").read()),
    "kill": attempt(os.kill, os.getppid(), 0),
    "fork": attempt(os.fork),
    "exec": attempt(os.execv, "/bin/true", ["true"]),
}
refused = ("EPERM", "EACCES", "ENOENT", "EROFS")
result = {name: value for name, value in result.items() if value not in refused}
"""
WORK = """
import socket, threading, tempfile
(Path(os.getcwd()) / "own").write_text("x")
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
with tempfile.TemporaryFile() as file:
    file.write(b"x")
socket.socketpair()
result = [(folder / "model" / "weights").read_text(), os.getcwd(), len(os.urandom(3)),
          open("/dev/null").read(), os.sched_getaffinity(0) != set(),
          Path("/proc/self/status").read_text()[:5]]
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory with a model, and a secret beside it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as name:
        path = Path(name)
        (path / "model").mkdir()
        (path / "model" / "weights").write_text("w")
        (path / "secret").write_text("secret")
        yield path


@pytest.mark.parametrize(
    "without",
    [[], *([name] for name in TAKEN_AWAY if name != "seccomp"), ["root", "landlock"]],
    ids="+".join,
)
def test_every_layer_can_be_missing(folder: Path, without: list[str]) -> None:
    """With any one layer away, the others still refuse each escape, and ordinary work goes on."""
    state, escaped = run_confined(folder, ESCAPES, without=without)
    if "files=none" in state:
        pytest.skip(f"neither mounts nor Landlock here: {state}")
    if "mounts" in state:  # the folders above its own are empty ones in its own memory
        escaped.pop("write beside", None)
    assert escaped == {}
    assert not (folder / "outside").exists()
    _, worked = run_confined(folder, WORK, without=without)
    assert worked == ["w", str(folder / "scratch"), 3, "", True, "Name:"]


def test_state_says_what_there_is(folder: Path) -> None:
    """A layer that is not there is not claimed."""
    found = {name: run_confined(folder, "result = 0", without=[name])[0] for name in TAKEN_AWAY}
    assert "namespace" not in found["namespaces"]
    assert "mounts" not in found["namespaces"]
    assert "mounts" not in found["mounts"]
    assert "MiB a file" in found["mounts"]
    assert "landlock" not in found["landlock"]
    assert "seccomp" not in found["seccomp"]
    assert "syscalls=none" in found["seccomp"]
    if landlock_version() >= 5:
        assert "landlock:5" in found["landlock-5"]
        assert "seccomp+landlock" not in found["landlock-1"]


@pytest.mark.parametrize("without", [["landlock", "namespaces"], ["seccomp"]])
def test_required_is_required(folder: Path, without: list[str]) -> None:
    """Where isolation of files or system calls cannot be had, ``required`` ends the worker and says so."""
    with pytest.raises(AssertionError, match="cannot be isolated here"):
        run_confined(folder, "result = 0", plan=SandboxPlan(level="required"), without=without)


def test_required_is_met_here(folder: Path) -> None:
    """On this machine every part that ``required`` demands is there, or the test says which is not."""
    state, _ = run_confined(folder, "result = 0")
    if any(f"{name}=none" in state for name in ("network", "files", "syscalls")):
        pytest.skip(state)
    run_confined(folder, ESCAPES, plan=SandboxPlan(level="required"))


def test_off_changes_nothing(folder: Path) -> None:
    """Without a sandbox a worker can do what its user can."""
    code = """
import socket, subprocess
socket.socket().close()
echo = subprocess.run(["/bin/echo", "hi"], capture_output=True, text=True)
result = [os.path.exists("/etc/passwd"), echo.stdout]
"""
    state, result = run_confined(folder, code, plan=SandboxPlan())
    assert state == "none"
    assert result == [True, "hi\n"]


def test_processes_when_allowed(folder: Path) -> None:
    """With ``sandbox_processes`` a program runs, in the same sandbox; the session cannot be left."""
    code = """
import subprocess
shell = "cat /etc/passwd || cat < /dev/tcp/127.0.0.1/1 || echo refused"
result = [subprocess.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout,
          subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True).stdout,
          attempt(os.setsid), attempt(os.kill, os.getppid(), 0)]
"""
    plan = SandboxPlan(level="best-effort", processes=True)
    state, result = run_confined(folder, code, plan=plan)
    if "landlock:" not in state:
        pytest.skip(state)
    assert result == ["hi\n", "refused\n", "EPERM", "EPERM"]
    assert "processes=others;" in state


def test_no_capabilities_and_no_new_ones(folder: Path) -> None:
    """Root in the sandbox has nothing of root, and cannot get it back."""
    code = """
lines = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
result = {name: lines[name].strip() for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs")}
"""
    _, found = run_confined(folder, code)
    assert set(found.values()) == {"0000000000000000", "1"}


def test_descriptors_are_closed(folder: Path) -> None:
    """Files that happened to be open are not, except the standard ones."""
    _, found = run_confined(folder, "result = sorted(map(int, os.listdir('/proc/self/fd')))")
    assert found[:3] == [0, 1, 2]
    assert len(found) == 4  # and the folder being listed


def test_memory_limit(folder: Path) -> None:
    """A limit of memory holds for private and shared anonymous memory; below it, allocation works."""
    code = """
import mmap
held = bytearray(16 << 20)
def fill():
    try:
        return len(bytearray(400 << 20))
    except MemoryError:
        return "ENOMEM"
result = [fill(), attempt(mmap.mmap, -1, 1 << 20)]
"""
    plan = SandboxPlan(level="best-effort", memory_bytes=256 << 20)
    state, result = run_confined(folder, code, plan=plan)
    assert "memory=256 MiB (data)" in state
    assert result == ["ENOMEM", "ENOMEM"]


def test_threads_before_are_refused(folder: Path) -> None:
    """Landlock and namespaces hold one thread: a process that has more must not believe itself confined."""
    code = "import threading, time; threading.Thread(target=time.sleep, args=(5,), daemon=True).start()"
    TAKEN_AWAY["one thread"] = code
    try:
        with pytest.raises(AssertionError, match="before threads are started"):
            run_confined(folder, "result = 0", without=["one thread"])
    finally:
        del TAKEN_AWAY["one thread"]


def test_mounts_leave_nothing_behind(folder: Path) -> None:
    """The worker's mounts are its own: none is seen outside, and none stays."""
    run_confined(folder, "(Path(os.getcwd()) / 'own').write_text('x'); result = 0")
    mounted = subprocess.run(["cat", "/proc/self/mounts"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in mounted


@pytest.mark.parametrize("without", [[], ["root"], ["namespaces"]], ids="+".join)
def test_ends_with_its_parent(folder: Path, without: list[str]) -> None:
    """That it is killed when the server ends is not lost on the way into namespaces."""
    before = "kernel.prctl(1, 9)"
    code = "number = kernel.ctypes.c_int(); result = 0"
    TAKEN_AWAY["nothing"] = before
    try:
        # PR_GET_PDEATHSIG is not on the list, so it is asked without the filter.
        code = "n = kernel.ctypes.c_int(); kernel._library.prctl(2, kernel.ctypes.byref(n)); result = n.value"
        _, signal_number = run_confined(folder, code, without=["nothing", "seccomp", *without])
    finally:
        del TAKEN_AWAY["nothing"]
    assert signal_number == 9


@pytest.mark.parametrize("without", [[], ["mounts"]], ids="+".join)
def test_connections_of_others_are_not_told(folder: Path, without: list[str]) -> None:
    """The tables of connections are its own namespace's, which has none, or not to be read."""
    code = "result = attempt(lambda: len(open('/proc/self/net/tcp').readlines()))"
    _, lines = run_confined(folder, code, without=without)
    assert lines == 1
    _, lines = run_confined(folder, code, without=["namespaces"])
    assert lines in ("EACCES", "ENOENT")


def test_first_to_go_when_memory_runs_out(folder: Path) -> None:
    """The kernel ends a worker before the server."""
    _, score = run_confined(folder, "result = int(open('/proc/self/oom_score_adj').read())")
    assert score == 500


def test_scratch_is_limited_in_size_and_number(folder: Path) -> None:
    """A folder full of bytes, and one full of empty files, are both an error to the worker alone."""
    code = """
def fill():
    for number in range(1 << 17):
        open(f"n{number}", "w").close()
result = [attempt(lambda: Path("big").write_bytes(bytes(9 << 20))), (os.unlink("big"), attempt(fill))[1]]
"""
    state, result = run_confined(folder, code)
    if "MiB a file" in state:
        pytest.skip(state)
    assert result in (["ENOSPC", "ENOSPC"], ["EFBIG", "ENOSPC"])

"""Control groups of workers: taken only where they are delegated, put back as they were, an end to all."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import WorkerLost
from cloister.serve.groups import MAX_PROCESSES, OWN, WorkerGroup, WorkerGroups


class Tree:
    """Files as the kernel shows them to a process in a group; what is written to them stays to be read."""

    def __init__(self, folder: Path, place: str) -> None:
        self.proc, self.root = folder / "proc", folder / "cg"
        self.group = self.root / place.lstrip("/")
        (self.proc / "self").mkdir(parents=True)
        self.group.mkdir(parents=True)
        (self.proc / "self" / "cgroup").write_text(f"0::{place}\n")
        self.write("cgroup.controllers", "cpu io memory pids")
        self.write("cgroup.procs", f"{os.getpid()}\n")
        self.write("cgroup.subtree_control", "")
        self.write("cgroup.type", "domain")

    def write(self, name: str, text: str) -> None:
        (self.group / name).write_text(text)

    def read(self, *names: str) -> str:
        return self.group.joinpath(*names).read_text()

    def open(self) -> WorkerGroups | None:
        return WorkerGroups.open(self.proc, self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A container's own tree, which nobody else uses."""
    return Tree(tmp_path, "/")


def test_a_group_for_each_worker(tree: Tree) -> None:
    """The server moves down, hands the controllers to groups beside its own, and each has its limits."""
    groups = tree.open()
    assert groups is not None
    assert tree.read(OWN, "cgroup.procs") == str(os.getpid())
    assert tree.read("cgroup.subtree_control") == "+memory +pids"
    first, second = groups.make(memory_bytes=5000), groups.make(memory_bytes=0)
    paths = [item._path for item in (first, second)]
    assert paths[0] != paths[1]
    assert [(path / "memory.max").read_text() for path in paths] == ["5000", "max"]
    assert (paths[0] / "memory.oom.group").read_text() == "1"
    assert (paths[0] / "memory.swap.max").read_text() == "0"
    assert (paths[0] / "pids.max").read_text() == str(MAX_PROCESSES)
    first.enter(4711)
    assert (paths[0] / "cgroup.procs").read_text() == "4711"
    assert not first.out_of_memory()
    (paths[0] / "memory.events").write_text("max 3\noom 1\noom_kill 1\noom_group_kill 1\n")
    assert first.out_of_memory()
    first.close()
    assert (paths[0] / "cgroup.kill").read_text() == "1"
    groups.close()
    assert tree.read("cgroup.subtree_control") == "-memory -pids"
    assert tree.read("cgroup.procs") == str(os.getpid())


@pytest.mark.parametrize("case", ["older", "machine", "controllers", "shared", "undelegated", "refused"])
def test_where_there_can_be_none(tmp_path: Path, case: str) -> None:
    """Nothing is changed without version 2, delegation, the controllers, or a group of the server's own."""
    tree = Tree(tmp_path, "/user.slice/shell" if case == "undelegated" else "/")
    if case == "older":
        (tree.proc / "self" / "cgroup").write_text("4:memory:/pod\n")
    if case == "machine":
        (tree.group / "cgroup.type").unlink()
    if case == "controllers":
        tree.write("cgroup.controllers", "cpu io")
    if case == "shared":
        tree.write("cgroup.procs", f"1\n{os.getpid()}\n")
    if case == "refused":
        (tree.group / "cgroup.subtree_control").unlink()
        (tree.group / "cgroup.subtree_control").mkdir()
    before = sorted(path.name for path in tree.group.iterdir())
    assert tree.open() is None
    if case == "refused":
        assert tree.read("cgroup.procs") == str(os.getpid())
    else:
        assert sorted(path.name for path in tree.group.iterdir()) == before


def test_a_group_that_cannot_be_had(tree: Tree, tmp_path: Path) -> None:
    """A worker that would run without its limits does not run."""
    groups = tree.open()
    assert groups is not None
    tree.root.rename(tmp_path / "gone")
    with pytest.raises(WorkerLost, match="control group"):
        groups.make(memory_bytes=0)
    with pytest.raises(WorkerLost, match="control group"):
        WorkerGroup(tmp_path / "none", []).enter(1)
    assert not WorkerGroup(tmp_path / "none", []).out_of_memory()


@pytest.fixture
def real() -> Iterator[Path]:
    """A group of this machine's, without any controller."""
    for root in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        folder = root / f"cloister-test-{os.getpid()}"
        if not (root / "cgroup.procs").exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("no control group (v2) can be made here")


def test_close_ends_all_that_is_in_it(real: Path) -> None:
    """A process that a handler left behind ends with its worker's group, and the group goes too."""
    path = real / "worker"
    path.mkdir()
    groups = WorkerGroups(real)
    group = WorkerGroup(path, groups._left)
    with subprocess.Popen(["sleep", "600"]) as process:
        group.enter(process.pid)
        assert (path / "cgroup.procs").read_text() == f"{process.pid}\n"
        group.close()
        assert process.wait(10) == -9
    until = time.monotonic() + 10
    while path.exists() and time.monotonic() < until:
        groups._sweep()
        time.sleep(0.01)
    assert not path.exists()
    assert groups._left == []

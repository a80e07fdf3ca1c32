"""What the system says of memory, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.serve.memory_watch import available_bytes, count_oom_kills, total_bytes


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    return tmp_path / "proc"


def test_cgroup_2(proc: Path, tmp_path: Path) -> None:
    """The count is that of this process's own group where its file is there."""
    (proc / "self" / "cgroup").write_text("0::/system.slice/cloister\n")
    group = tmp_path / "cg" / "system.slice" / "cloister"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 4\noom 2\noom_kill 3\noom_group_kill 0\n")
    assert count_oom_kills(proc, tmp_path / "cg") == 3


def test_cgroup_1(proc: Path, tmp_path: Path) -> None:
    """The older form is read as well."""
    (proc / "self" / "cgroup").write_text("5:cpuset:/\n4:memory:/pod\n")
    group = tmp_path / "cg" / "memory" / "pod"
    group.mkdir(parents=True)
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert count_oom_kills(proc, tmp_path / "cg") == 7


def test_machine(proc: Path, tmp_path: Path) -> None:
    """Where no group says anything the machine's count is taken, and without one nothing is claimed."""
    assert count_oom_kills(proc, tmp_path) is None
    (proc / "vmstat").write_text("pgfault 1\noom_kill 5\n")
    assert count_oom_kills(proc, tmp_path) == 5


def test_available(proc: Path, tmp_path: Path) -> None:
    """Memory that can be had is the machine's, or less where the group has a limit."""
    (proc / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:    1000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/\n")
    assert available_bytes(proc, tmp_path / "cg") == 1_024_000
    (tmp_path / "cg").mkdir()
    (tmp_path / "cg" / "memory.max").write_text("5000\n")
    (tmp_path / "cg" / "memory.current").write_text("4000\n")
    assert available_bytes(proc, tmp_path / "cg") == 1000
    (tmp_path / "cg" / "memory.max").write_text("max\n")
    assert available_bytes(proc, tmp_path / "cg") == 1_024_000


def test_total(proc: Path, tmp_path: Path) -> None:
    """What there is at most is the machine's memory, or the lowest limit of the groups above this process."""
    (proc / "meminfo").write_text("MemTotal:    1000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/pod/container\n")
    assert total_bytes(proc, tmp_path / "cg") == 1_024_000
    inner = tmp_path / "cg" / "pod" / "container"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (tmp_path / "cg" / "pod" / "memory.max").write_text("500000\n")
    assert total_bytes(proc, tmp_path / "cg") == 500_000
    (inner / "memory.max").write_text("300000\n")
    assert total_bytes(proc, tmp_path / "cg") == 300_000
    (proc / "self" / "cgroup").write_text("4:memory:/pod\n")
    older = tmp_path / "cg" / "memory" / "pod"
    older.mkdir(parents=True)
    (older / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert total_bytes(proc, tmp_path / "cg") == 1_024_000
    (older / "memory.limit_in_bytes").write_text("200000\n")
    assert total_bytes(proc, tmp_path / "cg") == 200_000

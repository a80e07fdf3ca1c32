"""Values of the machine."""

from __future__ import annotations

from pathlib import Path

from cloister.serve.machine import Machine


def make_proc(folder: Path, busy: int, idle: int) -> None:
    (folder / "stat").write_text(f"cpu {busy} 0 0 {idle} 0 0 0 0 0 0\n")
    (folder / "meminfo").write_text("MemTotal: 4096 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n")


def test_values(tmp_path: Path) -> None:
    """Processor time is that since the last reading, memory what is not available."""
    make_proc(tmp_path, 100, 100)
    machine = Machine(tmp_path)
    make_proc(tmp_path, 130, 110)
    values = {item.name: item.value for item in machine.read()}
    assert values["CPUUtilization"] == 75.0
    assert (values["MemoryUsed"], values["MemoryAvailable"], values["MemoryUtilization"]) == (3.0, 1.0, 75.0)
    assert 0 <= values["DiskUtilization"] <= 100
    assert {item.unit for item in machine.read()} == {"Percent", "Megabytes", "Gigabytes"}


def test_a_machine_that_hides_them(tmp_path: Path) -> None:
    """What cannot be read is left out, and nothing fails."""
    assert Machine(tmp_path / "none").read()[0].name == "CPUUtilization"

"""Which files a worker is shown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cloister
from cloister.serve.sandbox.plan import SandboxPlan
from cloister.serve.sandbox.view import worker_view

PLAN = SandboxPlan()


def test_python_and_the_package_are_seen(tmp_path: Path) -> None:
    """What a worker imports from is readable, nothing of it writable."""
    view = worker_view(PLAN, model=tmp_path, scratch=tmp_path / "none")
    assert {Path(sys.prefix), Path(cloister.__file__).parent, tmp_path} <= set(view.readable)
    assert view.writable == ()


@pytest.mark.parametrize("path", ["/", "/root", "/home", "/etc", "/proc", "/tmp", "relative", "/not/there"])
def test_wide_paths_are_left_out(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search path or a setting that would open everything opens nothing."""
    monkeypatch.setattr(sys, "path", [path, *sys.path])
    view = worker_view(SandboxPlan(readable=(path,)), model=tmp_path, scratch=tmp_path)
    assert Path(path) not in view.readable


def test_link_to_a_wide_path_is_left_out(tmp_path: Path) -> None:
    """Neither does a symbolic link to one."""
    (tmp_path / "link").symlink_to("/")
    view = worker_view(SandboxPlan(readable=(str(tmp_path / "link"),)), model=tmp_path, scratch=tmp_path)
    assert tmp_path / "link" not in view.readable


def test_settings_add_paths(tmp_path: Path) -> None:
    """``serve.sandbox_paths`` are seen as well."""
    extra = tmp_path / "data"
    extra.mkdir()
    view = worker_view(SandboxPlan(readable=(str(extra),)), model=tmp_path / "m", scratch=tmp_path / "s")
    assert extra in view.readable


def test_gpu_files_only_with_a_gpu(tmp_path: Path) -> None:
    """Device files of GPUs, and the whole of /sys, are for workers that have one."""
    without = worker_view(PLAN, model=tmp_path, scratch=tmp_path)
    assert Path("/sys") not in without.readable
    assert not any("nvidia" in str(path) for path in without.devices)
    assert Path("/sys") in worker_view(PLAN, model=tmp_path, scratch=tmp_path, gpu=True).readable

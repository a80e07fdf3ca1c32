"""A task in its own process always has an answer, and leaves nothing behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from cloister.optimize.isolation import available_memory, run_job, session_memory
from cloister.optimize.job import Event, Job, Source, Status
from cloister.optimize.samples import gather
from cloister.optimize.source import search_path


def attempt(tmp_path: Path, factory: str, *, limit_s: float = 120, memory_bytes: int = 0) -> Event:
    """Try a model of the tests as the original."""
    gather([np.zeros((2, 1, 16, 16), np.float32)]).save(tmp_path / "data.npz")
    job = Job(
        task="original",
        source=Source("factory", f"tests.optimize.models:{factory}"),
        search_path=search_path(),
        data=str(tmp_path / "data.npz"),
        concurrency=2,
        latency_samples=5,
        throughput_s=0.1,
    )
    return run_job(job, tmp_path, limit_s=limit_s, memory_bytes=memory_bytes)


def test_a_model_is_measured(tmp_path: Path) -> None:
    """Latency, throughput, memory, and what kind of model it is."""
    event = attempt(tmp_path, "picture_net")
    assert event.measured is not None, event
    assert (event.measured.calls, event.measured.family, event.measured.convolutions) == (5, "torch", True)
    assert event.measured.p50_ms > 0
    assert event.measured.timings[0].per_s > 0
    assert event.measured.memory_bytes > 1 << 26


def test_memory_is_the_processs_own(tmp_path: Path) -> None:
    """What the one that searches holds, such as the model and its data, is not the method's."""
    held = np.ones(1 << 30, np.uint8)
    event = attempt(tmp_path, "picture_net")
    assert event.measured is not None, event
    assert event.measured.memory_bytes < held.nbytes


@pytest.mark.parametrize(
    ("factory", "status", "reason"),
    [
        ("needy", Status.LACK_DEPENDENCY, "cloister_no_such_package"),
        ("broken", Status.FAIL_TO_FORWARD, "no forward today"),
        ("crasher", Status.FAIL_TO_CONVERT, "SIGABRT"),
        ("forked", Status.FAIL_TO_CONVERT, "SIGABRT"),
        ("nothing", Status.FAIL_TO_CONVERT, "no model"),
        ("absent", Status.FAIL_TO_CONVERT, "has no absent"),
    ],
)
def test_failures_are_words(tmp_path: Path, factory: str, status: Status, reason: str) -> None:
    """Each way to fail has its status and its reason, an ended process too."""
    failure = attempt(tmp_path, factory).failure
    assert failure is not None
    assert failure.status is status
    assert reason in failure.reason


def test_time_is_limited_also_for_what_a_model_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed with all that it has started."""
    monkeypatch.setenv("CLOISTER_TEST_PID", str(tmp_path / "pid"))
    failure = attempt(tmp_path, "parent", limit_s=15).failure
    assert failure is not None
    assert failure.status is Status.TIMED_OUT
    pid = int((tmp_path / "pid").read_text())
    time.sleep(0.2)
    assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()


def test_memory_is_limited(tmp_path: Path) -> None:
    """A model that takes all memory is stopped before the machine runs short."""
    failure = attempt(tmp_path, "glutton", memory_bytes=1 << 30).failure
    assert failure is not None
    assert failure.status is Status.OUT_OF_MEMORY
    assert "1024 MiB" in failure.reason


def test_memory_of_this_session_can_be_told() -> None:
    """The figures that the limit is held against are real."""
    assert session_memory(os.getsid(0)) > 0
    assert available_memory() > 1 << 20

"""What a machine has is found out without harm to the one who asks."""

from __future__ import annotations

import socket

import pytest

from cloister.errors import WorkerLost
from cloister.serve.sandbox import probe
from tests.serve.sandbox.inside import missing_here


def test_probe_finds_what_a_worker_gets() -> None:
    """The state is the one that a worker reports, and this process is not confined by having asked."""
    assert tuple(probe.probe().missing()) == missing_here()
    socket.socket().close()


def test_failure_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that says nothing sensible is one declared error."""
    monkeypatch.setattr(probe, "_BOOTSTRAP", "print('x')")
    with pytest.raises(WorkerLost, match="cannot be tried"):
        probe.probe()

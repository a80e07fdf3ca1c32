"""What settings ask for, and how a state reads."""

from __future__ import annotations

import pytest

from cloister.serve.sandbox.confine import describe
from cloister.serve.sandbox.plan import SandboxPlan, SandboxState, plan_for
from cloister.settings import ServeSettings


@pytest.mark.parametrize(
    ("mode", "setting", "level"),
    [
        ("protected", "auto", "required"),
        ("open", "auto", "off"),
        ("open", "required", "required"),
        ("protected", "best-effort", "best-effort"),
        ("protected", "off", "off"),
    ],
)
def test_levels(mode: str, setting: str, level: str) -> None:
    """``auto`` is strict in protected mode and off in open mode; every other word is taken at its word."""
    settings = ServeSettings(mode=mode, sandbox=setting, worker_memory_mb=2, worker_scratch_mb=3)  # type: ignore[arg-type]
    plan = plan_for(settings)
    assert (plan.level, plan.memory_bytes, plan.scratch_bytes) == (level, 2 << 20, 3 << 20)


def test_state_is_one_stable_text() -> None:
    """Evidence carries the same text for the same state, with a word for what is missing."""
    plan = SandboxPlan(level="required", scratch_bytes=1 << 20)
    full = describe(plan, namespaces=True, own_root=True, abi=7, filtered=True, memory="")
    assert full.render() == (
        "network=namespace+seccomp+landlock; files=mounts+landlock:7; processes=others+new; "
        "syscalls=allow-list; memory=none; scratch=1 MiB"
    )
    assert full.missing() == []
    assert SandboxState(memory="5 MiB").render() == "none"


def test_missing_layers_are_named() -> None:
    """What ``required`` does not find is what its refusal names."""
    plan = SandboxPlan(level="required")
    bare = describe(plan, namespaces=False, own_root=False, abi=0, filtered=False, memory="")
    assert bare.missing() == ["network", "files", "syscalls"]
    old = describe(plan, namespaces=False, own_root=False, abi=3, filtered=False, memory="")
    assert old.missing() == ["network", "syscalls"]

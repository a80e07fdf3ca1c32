"""Settings for all tests."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The machines that run these tests are shared and sometimes slow: how long an example takes says nothing
# about the code, and no test here asserts a time.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

_VECTORS: Counter[tuple[str, str]] = Counter()


def count_vector(kind: str, outcome: str) -> None:
    """Count one entry of the vectors' manifest for the summary at the end of the run."""
    _VECTORS[kind, outcome] += 1


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long bytes, which may be random, are no name for a test."""
    return argname if isinstance(val, bytes) and len(val) > 64 else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts to the process that started this one, where pytest runs in several (xdist)."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["vectors"] = [[*entry, count] for entry, count in _VECTORS.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of such a process when it is done."""
    for kind, outcome, count in getattr(node, "workeroutput", {}).get("vectors", ()):
        _VECTORS[kind, outcome] += count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many vectors of each kind gave the verdict that their manifest states."""
    if _VECTORS:
        terminalreporter.section("vectors by kind")
        for (kind, outcome), count in sorted(_VECTORS.items()):
            terminalreporter.write_line(f"{kind:18} {count:4} {outcome}")

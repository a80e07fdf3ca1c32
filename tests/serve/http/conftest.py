"""Whatever is tried on a real listener is tried with frontend processes' hand-over behind it too."""

from __future__ import annotations

import pytest

from tests.serve.http import front_end


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both ways for each test of a module that opens listeners."""
    if hasattr(metafunc.module, "front_end"):
        metafunc.fixturenames.append("handed")
        metafunc.parametrize("handed", [False, True], ids=["core", "handed"], indirect=True)


@pytest.fixture
def handed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``front_end`` hand requests over, or not."""
    monkeypatch.setattr(front_end, "HANDED", request.param)

"""What workers are started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve.model_config import ModelConfig
from cloister.serve.process import WorkerSpec
from cloister.serve.spec import worker_spec
from cloister.settings import ServeSettings


def spec_of(settings: ServeSettings) -> WorkerSpec:
    return worker_spec(
        settings, ModelConfig(), name="m", version="1", model_dir=Path("/m"), handler="h.py", groups=None
    )


def test_environment_of_workers() -> None:
    """What passes on of the environment is a setting of open mode, and has to be a regular expression."""
    assert spec_of(ServeSettings(mode="open", worker_environment="HF_.*")).environment == "HF_.*"
    assert spec_of(ServeSettings()).environment == ""
    with pytest.raises(ConfigError, match="open mode"):
        spec_of(ServeSettings(worker_environment=".*"))
    with pytest.raises(ConfigError, match="regular expression"):
        spec_of(ServeSettings(mode="open", worker_environment="("))

"""TorchServe's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve.torchserve.arguments import Arguments, parse_arguments, render_arguments


def test_every_flag() -> None:
    """Each flag of TorchServe is taken, its short forms too."""
    line = (
        "--start --foreground --ncs --model-store store --ts-config c.properties --workflow-store wf"
        " --plugins-path plug --log-config l.xml --cpp-log-config c.yaml --dt --enable-model-api"
        " --models a.mar b=c.mar"
    )
    assert parse_arguments(line.split()) == Arguments(
        start=True,
        foreground=True,
        no_config_snapshots=True,
        model_store=Path("store"),
        ts_config=Path("c.properties"),
        workflow_store=Path("wf"),
        plugins_path="plug",
        log_config=Path("l.xml"),
        cpp_log_config=Path("c.yaml"),
        disable_token_auth=True,
        enable_model_api=True,
        models=("a.mar", "b=c.mar"),
    )
    assert parse_arguments(["--no-config-snapshots", "--disable-token-auth"]) == Arguments(
        no_config_snapshots=True, disable_token_auth=True
    )
    assert parse_arguments(["--ppath", "x"]).plugins_path == "x"
    assert parse_arguments(["--version"]).version
    assert parse_arguments(["--stop"]).stop


def test_round_trip() -> None:
    """What the process in the background is given means the same."""
    for line in ("", "--start --foreground", "--start --ncs --model-store /a --models x=y.mar all --dt"):
        arguments = parse_arguments(line.split())
        assert parse_arguments(render_arguments(arguments)) == arguments


@pytest.mark.parametrize("line", ["--start --stop", "--nothing", "--model-store", "--models", "word"])
def test_wrong_usage(line: str) -> None:
    """What cannot be is a configuration error of one line."""
    with pytest.raises(ConfigError, match="torchserve: "):
        parse_arguments(line.split())

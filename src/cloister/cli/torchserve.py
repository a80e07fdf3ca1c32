"""``cloister torchserve``: TorchServe's start command, with its own flags."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from cloister.cli.output import errors

CONTEXT = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}
STARTED = "Model server started."


def torchserve(context: typer.Context) -> None:
    """Serve models as TorchServe does: its flags, its config.properties, its APIs; open mode only."""
    from cloister.errors import ConfigError
    from cloister.serve.torchserve import VERSION
    from cloister.serve.torchserve.arguments import parse_arguments
    from cloister.serve.torchserve.background import Background
    from cloister.serve.torchserve.config import log_folder, resolve, serve_settings

    arguments = parse_arguments(context.args)
    background = Background.of_user()
    if arguments.version:
        typer.echo(f"TorchServe Version is {VERSION} (Cloister's)")
        return
    if arguments.stop:
        typer.echo(background.stop(Path.cwd()))
        return
    configuration = resolve(arguments, os.environ, Path.cwd())
    flags = serve_settings(configuration)
    warnings = list(configuration.warnings)
    if find_spec("grpc") is None and not any(key.startswith("grpc_") for key in configuration.values):
        flags["serve.grpc_port"] = flags["serve.grpc_management_port"] = 0
        warnings.append("gRPC is off: it needs pip install 'cloister[grpc]'")
    for warning in warnings:
        errors.print(f"warning: {warning}")
    if not flags["serve.model_store"]:
        raise ConfigError("Missing mandatory parameter --model-store")
    if not Path(flags["serve.model_store"]).is_dir():
        raise ConfigError(f"--model-store directory not found: {flags['serve.model_store']}")
    if not arguments.foreground:
        typer.echo(background.start(arguments, log_folder(os.environ, Path.cwd())))
        return
    _run(flags, background)


def _run(flags: dict[str, object], background: object) -> None:
    from cloister.serve.server import run_server
    from cloister.serve.torchserve.background import Background
    from cloister.settings import load_settings

    assert isinstance(background, Background)
    # Cloister's own variables still hold for what TorchServe has no key for.
    settings = load_settings(None, os.environ, flags)
    with background.running(os.getpid()):
        sys.stdout.flush()
        run_server(settings, announce=STARTED)

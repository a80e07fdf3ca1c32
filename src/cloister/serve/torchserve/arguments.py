"""TorchServe's command line, taken as it is: flags, abbreviations, several models after one ``--models``.

Source: pytorch/serve 0.12, ts/arg_parser.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What the command line says."""

    version: bool = False
    start: bool = False
    stop: bool = False
    foreground: bool = False
    ts_config: Path | None = None
    model_store: Path | None = None
    workflow_store: Path | None = None
    models: tuple[str, ...] = ()
    log_config: Path | None = None
    cpp_log_config: Path | None = None
    no_config_snapshots: bool = False
    plugins_path: str = ""
    disable_token_auth: bool = False
    enable_model_api: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # raises instead of ending the process
        raise ConfigError(f"torchserve: {message}", hint="see `cloister torchserve --help`")


def parse_arguments(words: Sequence[str]) -> Arguments:
    """The arguments after ``cloister torchserve``.

    Raises:
        ConfigError: an unknown flag, or flags that exclude each other.
    """
    found = vars(_parser().parse_args(list(words)))
    paths = ("ts_config", "model_store", "workflow_store", "log_config", "cpp_log_config")
    for name in paths:
        if found[name] is not None:
            found[name] = Path(found[name])
    found["models"] = tuple(found["models"] or ())
    found["plugins_path"] = found["plugins_path"] or ""
    return Arguments(**found)


def render_arguments(arguments: Arguments) -> list[str]:
    """Words that ``parse_arguments`` reads back as the same, for the process in the background."""
    words: list[str] = []
    for name in ("version", "start", "stop", "foreground"):
        if getattr(arguments, name):
            words.append(f"--{name}")
    for name in ("ts_config", "model_store", "workflow_store", "log_config", "cpp_log_config"):
        path = getattr(arguments, name)
        if path is not None:
            words += [f"--{name.replace('_', '-')}", str(path)]
    if arguments.plugins_path:
        words += ["--plugins-path", arguments.plugins_path]
    for name in ("no_config_snapshots", "disable_token_auth", "enable_model_api"):
        if getattr(arguments, name):
            words.append(f"--{name.replace('_', '-')}")
    if arguments.models:
        words += ["--models", *arguments.models]
    return words


def _parser() -> _Parser:
    parser = _Parser(prog="cloister torchserve", description="Serve models with TorchServe's own flags.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-v", "--version", action="store_true", help="print the version")
    what.add_argument("--start", action="store_true", help="start the model server")
    what.add_argument("--stop", action="store_true", help="stop the model server")
    parser.add_argument("--foreground", action="store_true", help="run in the foreground")
    parser.add_argument("--ts-config", metavar="FILE", help="config.properties")
    parser.add_argument("--model-store", metavar="FOLDER", help="where models are")
    parser.add_argument("--workflow-store", metavar="FOLDER", help="taken, and not used: no workflows")
    parser.add_argument(
        "--models", nargs="+", metavar="[NAME=]FILE", help="models to load: archives in the store, or all"
    )
    parser.add_argument("--log-config", metavar="FILE", help="taken, and not used: logs are JSON")
    parser.add_argument("--cpp-log-config", metavar="FILE", help="taken, and not used: no C++ backend")
    parser.add_argument(
        "--no-config-snapshots", "--ncs", action="store_true", help="taken: snapshots are never written"
    )
    parser.add_argument("--plugins-path", "--ppath", metavar="FOLDER", help="taken, and not used")
    parser.add_argument(
        "--disable-token-auth",
        "--dt",
        action="store_true",
        help="no token is asked for: trusted networks only",
    )
    parser.add_argument("--enable-model-api", action="store_true", help="models can be added and removed")
    return parser

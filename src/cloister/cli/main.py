"""The ``cloister`` command: one group per actor, one exit code per kind of outcome.

A subcommand reads its options, makes one library call and shows the result. Libraries are imported inside
the subcommands, so that ``cloister --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from cloister import __version__
from cloister.cli import (
    access,
    archive,
    bench,
    collateral,
    demo,
    evidence,
    keys,
    optimize,
    predict,
    proxy,
    seal,
    serve,
    simulate,
    torchserve,
    verifier,
    verify,
    worker,
)
from cloister.cli.output import show_error
from cloister.errors import CloisterError

EPILOG = (
    "Exit codes: 0 done or accepted, 1 internal fault, 2 usage or configuration, 3 refused, "
    "4 malformed input, 5 other side unreachable, 6 the server could not answer."
)

app = typer.Typer(
    name="cloister",
    help="Serve machine-learning models on machines that nobody has to trust.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cloister {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the subcommand."""


app.command("archive")(archive.archive)
app.command("optimize", epilog=optimize.EPILOG)(optimize.optimize)
app.command("seal")(seal.seal)
app.command("inspect")(seal.inspect)
app.add_typer(keys.app, name="keys")
app.command("serve")(serve.serve)
app.command("worker")(worker.worker)
app.command("torchserve", context_settings=torchserve.CONTEXT, add_help_option=False)(torchserve.torchserve)
app.command("settings")(serve.show_settings)
app.command("evidence")(evidence.evidence)
app.command("verify")(verify.verify)
app.command("predict")(predict.predict)
app.command("bench")(bench.bench)
app.command("proxy")(proxy.proxy)
app.command("verifier")(verifier.verifier)
app.add_typer(collateral.app, name="collateral")
app.add_typer(access.app, name="access")
app.add_typer(simulate.app, name="simulate")
app.command("demo")(demo.demo)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command line and exit with its documented code."""
    try:
        app(args=arguments, prog_name="cloister")
    except CloisterError as error:
        show_error(error)
        sys.exit(error.exit_code)
    sys.exit(0)

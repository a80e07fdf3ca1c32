"""``cloister simulate``: a software TDX platform for machines without a TEE. It proves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import ConfigFile, Json, now
from cloister.cli.output import console, show_json
from cloister.cli.serve import effective_settings
from cloister.settings import settings_digest

app = typer.Typer(help="A software TDX platform for tests and demos. It protects nothing.")


@app.command("init")
def init(folder: Annotated[Path, typer.Argument(help="Folder to make the platform in.")]) -> None:
    """Make a platform: its own root, certificates, TCB info and quoting key."""
    from cloister.attest.simulated.platform import SimulatedPlatform

    SimulatedPlatform.create(folder, now())
    console.print(
        f"made a simulated platform in {folder}; verifiers need root.pem and collateral.json from it"
    )


@app.command("measure")
def measure(config: ConfigFile = None, as_json: Json = False) -> None:
    """Print reference values for a simulated server: this package's mr_td, these settings' mr_config_id."""
    from cloister.attest.measure import installed_package, measure_package

    mr_td = measure_package(installed_package()).hex()
    mr_config_id = settings_digest(effective_settings(config, {})).hex()
    if as_json:
        show_json({"mr_td": mr_td, "mr_config_id": mr_config_id})
    else:
        typer.echo(reference_values([mr_td], [mr_config_id]), nl=False)


def reference_values(mr_td: list[str], mr_config_id: list[str]) -> str:
    """Reference values in TOML that accept simulated TDX servers with one of these measurements."""
    return (
        "# Accepts SIMULATED evidence, which proves nothing about hardware.\n"
        "allow_simulated = true\n\n"
        "[tdx]\n"
        f"mr_td = {_toml_list(mr_td)}\n"
        f"mr_config_id = {_toml_list(mr_config_id)}\n"
        'tcb_status = ["UpToDate"]\n'
    )


def _toml_list(values: list[str]) -> str:
    return "[\n" + "".join(f'  "{value}",\n' for value in values) + "]"

"""``cloister simulate``: software platforms for machines without a TEE. They prove nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import ConfigFile, Json, now
from cloister.cli.output import console, show_json
from cloister.cli.serve import effective_settings
from cloister.errors import ConfigError
from cloister.settings import settings_digest

app = typer.Typer(help="Software platforms for tests and demos. They protect nothing.")
TEES = ("tdx", "sgx", "sev-snp")

Tee = Annotated[str, typer.Option(help="tdx, sgx (the same platform does both) or sev-snp.")]


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make the platform in.")], tee: Tee = "tdx"
) -> None:
    """Make a platform: its own root, certificates, TCB info and quoting key."""
    from cloister.attest.simulated import SimulatedPlatform, SimulatedSgxPlatform, SimulatedSnpPlatform

    _check_tee(tee)
    if tee == "sev-snp":
        SimulatedSnpPlatform.create(folder, now())
        needed = "snp-root.pem and snp-endorsements.json"
    elif tee == "sgx":
        SimulatedSgxPlatform.create(folder, now())
        needed = "root.pem and sgx-collateral.json"
    else:
        SimulatedPlatform.create(folder, now())
        needed = "root.pem and collateral.json"
    console.print(f"made a simulated platform in {folder}; verifiers need {needed} from it")


@app.command("measure")
def measure(config: ConfigFile = None, tee: Tee = "tdx", as_json: Json = False) -> None:
    """Print reference values for a simulated server: this package's measurement, these settings' digest."""
    from cloister.attest.attesters.simulated import HOST_DATA_BYTES, enclave_measurement
    from cloister.attest.measure import installed_package, measure_package

    _check_tee(tee)
    package = measure_package(installed_package())
    settings = settings_digest(effective_settings(config, {}))
    values = {
        "tdx": {"mr_td": package.hex(), "mr_config_id": settings.hex()},
        "sgx": {"mr_enclave": enclave_measurement(package).hex()},
        "sev-snp": {"measurement": package.hex(), "host_data": settings[:HOST_DATA_BYTES].hex()},
    }[tee]
    if as_json:
        show_json(values)
    elif tee == "tdx":
        typer.echo(reference_values([values["mr_td"]], [values["mr_config_id"]]), nl=False)
    else:
        typer.echo(_table(tee, {name: [value] for name, value in values.items()}), nl=False)


def reference_values(mr_td: list[str], mr_config_id: list[str]) -> str:
    """Reference values in TOML that accept simulated TDX servers with one of these measurements."""
    return _table("tdx", {"mr_td": mr_td, "mr_config_id": mr_config_id}) + 'tcb_status = ["UpToDate"]\n'


def _table(tee: str, fields: dict[str, list[str]]) -> str:
    return (
        "# Accepts SIMULATED evidence, which proves nothing about hardware.\n"
        "allow_simulated = true\n\n"
        f"[{tee}]\n" + "".join(f"{name} = {_toml_list(values)}\n" for name, values in fields.items())
    )


def _check_tee(tee: str) -> None:
    if tee not in TEES:
        raise ConfigError(f"no simulated {tee[:20]!r}, there are {', '.join(TEES)}")


def _toml_list(values: list[str]) -> str:
    return "[\n" + "".join(f'  "{value}",\n' for value in values) + "]"

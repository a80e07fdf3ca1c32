"""``cloister keys backup``: copies of a broker, and a broker from a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.keys.access import Folder, keys_settings
from cloister.cli.options import ConfigFile, Json, now
from cloister.cli.output import console, fields_table, show_json

backup = typer.Typer(help="Back a broker up while it runs, and make a broker from a backup.")

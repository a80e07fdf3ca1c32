"""``cloister demo``: the whole path on this machine, with real processes."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from cloister.cli.output import console

if TYPE_CHECKING:
    from cloister.cli.walkthrough.narrator import Narrator


def demo(
    folder: Annotated[Path, typer.Option(help="Where containers, logs and databases go.")] = Path("demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave broker and server running.")] = False,
    canary: Annotated[str, typer.Option(help="Seed of the canaries; random if empty.", hidden=True)] = "",
    record: Annotated[Path | None, typer.Option(help="Also save the terminal as SVG.", hidden=True)] = None,
) -> None:
    """Train, seal, unlock, ask, refuse, prove: the whole story in under a minute."""
    from cloister.cli.walkthrough.canary import Markers
    from cloister.cli.walkthrough.stage import Stage
    from cloister.cli.walkthrough.story import tell

    # What it has started is stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    terminal = (
        Console(record=True, width=100, highlight=False, color_system="truecolor")
        if record
        else Console(highlight=False)
    )
    stage = Stage.create(folder)
    narrator = tell(stage, Markers.from_seed(canary) if canary else Markers.generate(), terminal)
    if record:
        _save_svg(terminal, record)
    if keep:
        _show_what_to_try(narrator)
        return
    narrator.stop()
    took_s = time.monotonic() - began
    console.print(Text.assemble("\n", ("done", "bold green"), f" in {took_s:.0f} s; all processes stopped"))


def _save_svg(terminal: Console, target: Path) -> None:
    """Save what was shown, with fonts of the reader's machine only."""
    plain = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    terminal.save_svg(str(target), title="make demo", code_format=plain)


def _show_what_to_try(narrator: Narrator) -> None:
    import json
    import subprocess

    from cloister.cli.walkthrough.processes import command
    from cloister.cli.walkthrough.stage import PIDS

    stage = narrator.stage
    trust = f"-r {stage.path('caller-reference.toml')} --simulated-root {stage.path('platform')}/root.pem"
    verdict = subprocess.run(
        [*command("verify", stage.url), *trust.split(), "--json"], capture_output=True, check=True
    )
    pin = json.loads(verdict.stdout)["identity"]["tls-key-sha256"]
    image = stage.path("digit.png")
    _copy_pixels(next((stage.plaintext / "images").iterdir()), image)
    stage.remove_plaintext()
    pids = " ".join(str(process.pid) for process in narrator.processes)
    stage.path(PIDS).write_text(pids + "\n")
    nonce = "$(head -c 32 /dev/urandom | base64 | tr +/ -_ | tr -d =)"
    console.print(Text.assemble("\n", ("still running", "bold green"), "; try:\n"))
    for line in (
        f"cloister verify {stage.url} {trust}",
        f"cloister predict {stage.url} digits {image} {trust}",
        f"cloister access test {stage.path('requests.cedar')} --model digits --way tls",
        f"curl -k --pinnedpubkey 'sha256//{pin}' -T {image} {stage.url}/predictions/digits    # refused: 403",
        f'curl -k "{stage.url}/.well-known/cloister/evidence?nonce={nonce}"',
        f"cloister keys audit show -c {stage.path('broker.toml')}",
        f"kill {pids}    # stop broker and server",
    ):
        console.print("  " + line, soft_wrap=True, style="blue")


def _copy_pixels(source: Path, target: Path) -> None:
    """Copy an image without the note that the demo planted in it."""
    from PIL import Image

    with Image.open(source) as image:
        pixels = Image.frombytes(image.mode, image.size, image.tobytes())
    pixels.save(target)

"""How the demo speaks: numbered steps, the commands that it runs, what came of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.text import Text

from cloister.cli.walkthrough.processes import Process, clean_environment
from cloister.cli.walkthrough.stage import Stage
from cloister.errors import CloisterError


class DemoFailed(CloisterError):
    """Something in the demo did not come out as it must."""

    exit_code = 1


class Narrator:
    """Runs commands of one stage and tells what happens."""

    def __init__(self, stage: Stage, console: Console) -> None:
        self.stage = stage
        self.console = console
        self.processes: list[Process] = []
        self._step = 0

    def title(self, title: str, text: str) -> None:
        """Begin a step and explain it."""
        self._step += 1
        self.console.print()
        self.console.print(Rule(f"[bold]{self._step}. {title}[/bold]", align="left", style="cyan"))
        self.console.print(text, style="dim")

    def say(self, text: str) -> None:
        """One line, which a terminal may wrap but never cuts, so that commands can be copied."""
        self.console.print(text, soft_wrap=not self.console.record)

    def done(self, text: str) -> None:
        """Something came out as it should."""
        self.say(f"  [green]✓[/green] {text}")

    def show(self, arguments: list[str]) -> None:
        """Show a command as a person would type it."""
        line = "cloister " + " ".join(arguments[3:])
        line = line.replace(str(self.stage.folder), self.stage.folder.name)
        line = line.replace(str(self.stage.plaintext), "(memory)")
        self.say(f"[blue]  $ {escape(line)}[/blue]")

    def start(self, name: str, arguments: list[str], ready_url: str) -> None:
        """Start a process in the background and wait until it answers."""
        self.show(arguments)
        self.processes.append(Process(name, arguments, self.stage.log(name)))
        with self.console.status(f"  waiting for the {name}"):
            self.processes[-1].wait_until_ready(ready_url)

    def run(self, name: str, arguments: list[str], *, shown: bool = False, instead: str = "") -> str:
        """Run a command to its end and return its output.

        Args:
            shown: print the output too.
            instead: words to show in place of a long list of ``.png`` files.
        Raises:
            DemoFailed: the command did not end with 0.
        """
        visible = [word for word in arguments if not (instead and word.endswith(".png"))]
        self.show([*visible, f"({instead})"] if instead else visible)
        environment = clean_environment()
        environment["COLUMNS"] = str(self.console.width)
        if shown and self.console.color_system is not None:
            environment["FORCE_COLOR"] = "1"
        with self.console.status(f"  {name}"):
            finished = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
        self.stage.log(name).write_text(finished.stderr)
        if finished.returncode:
            raise DemoFailed(f"{name} failed: {finished.stderr.strip() or finished.stdout.strip()}")
        if shown:
            self.console.print(Text.from_ansi(finished.stdout.rstrip("\n")))
        return finished.stdout

    def trust(self, reference: str) -> list[str | Path]:
        """Options that tell a caller's command what to accept."""
        root = self.stage.path("platform") / "root.pem"
        return ["-r", self.stage.path(reference), "--simulated-root", root]

    def stop(self) -> None:
        """Stop every process that is still there, and forget the plaintext."""
        for process in reversed(self.processes):
            process.stop()
        self.stage.remove_plaintext()

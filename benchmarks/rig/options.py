"""The options that every script has, and where its results go."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rig.machine import describe_machine, render_machine
from rig.page import write_section

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"


def make_parser(document: str | None, *, rounds: int = 3, seconds: float = 10.0) -> argparse.ArgumentParser:
    """A parser with --rounds, --seconds, --environments, --json and --page."""
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of each contestant, in turn")
    parser.add_argument("--seconds", type=float, default=seconds, help="length of one run")
    parser.add_argument(
        "--environments", type=Path, default=ROOT / ".peers", help="peers' environments, and models"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", type=Path, help="write the JSON to this file too")
    parser.add_argument("--page", action="store_true", help="write tables and plots into docs/performance.md")
    return parser


class Results:
    """What a script found, with the machine as it was before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.machine = describe_machine()

    def publish(
        self,
        options: argparse.Namespace,
        data: dict[str, Any],
        text: str,
        plots: dict[str, str] | None = None,
    ) -> None:
        """Print the table or JSON; write the file and the page where that was asked for.

        Args:
            data: everything that was measured.
            text: Markdown for people.
            plots: SVG by name; the text refers to each as ``assets/<name>.svg``.
        """
        found = {"machine": self.machine, **data}
        if options.save:
            options.save.parent.mkdir(parents=True, exist_ok=True)
            options.save.write_text(json.dumps(found, indent=1) + "\n")
        if options.page:
            for name, svg in (plots or {}).items():
                (PAGE.parent / "assets").mkdir(exist_ok=True)
                (PAGE.parent / "assets" / f"{name}.svg").write_text(svg)
            write_section(PAGE, self.name, f"{text.rstrip()}\n\n{render_machine(self.machine)}")
        print(json.dumps(found, indent=1) if options.json else text)
        sys.stdout.flush()

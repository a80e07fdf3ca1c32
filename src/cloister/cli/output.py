"""How the command line speaks: tables for people, one JSON document for programs, errors on one line."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloister.attest.model import AttestationResult, Claims
from cloister.errors import CloisterError

if TYPE_CHECKING:
    from cloister.attest.service import VerifiedService

_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


def printable(text: str) -> str:
    """``text`` with nothing in it that moves a terminal's cursor or turns its text round.

    What is shown was written by others: models' answers, logs, evidence that is not accepted.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


class Plain(Console):
    """Shows text as it is, also in tables: brackets are no markup, and colons no emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console = Plain(soft_wrap=False)
errors = Plain(stderr=True, soft_wrap=True)

SHORT_VALUE_CHARACTERS = 21


def show_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def say(facts: dict[str, Any], line: str, as_json: bool) -> None:
    """What came of a command: facts for a program, a line for people."""
    if as_json:
        show_json(facts)
    else:
        console.print(line, soft_wrap=True)


def one_line(error: CloisterError) -> str:
    """The error and what to do next, on one line."""
    text = str(error)
    reasons = getattr(error, "reasons", ())
    if reasons and not any(reason in text for reason in reasons):
        text += ": " + "; ".join(reasons)
    if error.hint:
        text += f" ({error.hint})"
    return " ".join(text.split())


def show_error(error: CloisterError) -> None:
    """Print an error on one line of standard error."""
    kind = "refused" if error.exit_code == 3 else "error"
    errors.print(Text.assemble((f"{kind}: ", "bold red"), printable(one_line(error))))


def shorten(value: str, characters: int = SHORT_VALUE_CHARACTERS) -> str:
    """Keep both ends of a long value, which is what people compare."""
    if len(value) <= characters:
        return value
    half = (characters - 1) // 2
    return f"{value[:half]}…{value[-half:]}"


def verdict_line(service: VerifiedService, url: str) -> str:
    """What was verified, on one line."""
    result = service.result
    models = ", ".join(
        f"{model.name} {model.version} (sha256 {shorten(model.container_digest, 13)})"
        for model in service.identity.models
    )
    simulated = " SIMULATED, proves nothing;" if result.simulated else ""
    return (
        f"verified {url}: {result.claims.scheme},{simulated} {len(result.checks)} checks hold;"
        f" serves {models or 'no model'}"
    )


def verdict_table(result: AttestationResult, title: str) -> Table:
    """Every check of an appraisal: name, expected, found, and whether it holds."""
    colour = "green" if all(check.passed for check in result.checks) else "red"
    table = Table(title=title, title_justify="left", border_style=colour, expand=False)
    table.add_column("check")
    table.add_column("expected", overflow="fold")
    table.add_column("found", overflow="fold")
    table.add_column("")
    for check in result.checks:
        mark = Text("yes", "green") if check.passed else Text("NO", "bold red")
        table.add_row(check.name, shorten(check.expected), shorten(check.found), mark)
    return table


def claims_table(claims: Claims, title: str) -> Table:
    """What genuine evidence says, for people; nested claims are left to ``--json``."""
    table = Table(title=title, title_justify="left", show_header=False, border_style="yellow")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in claims.to_mapping().items():
        if isinstance(value, list):
            value = ", ".join(map(str, value)) if all(isinstance(item, str) for item in value) else ""
        if value not in (None, "") and not isinstance(value, dict):
            table.add_row(name, str(value))
    return table


def fields_table(title: str, rows: dict[str, Any]) -> Table:
    """A two-column table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table

"""What the documentation says is true: links, settings, commands and code."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from rich.text import Text

from cloister.attest.appraisal import describe
from cloister.attest.verifier import SCHEMES
from cloister.cli.main import app
from cloister.serve import torchserve
from cloister.settings import Settings
from tests.serve.handlers import import_state

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    """Every fenced block of one language, with its page."""
    for page in PAGES:
        for found, text in FENCE.findall(page.read_text()):
            if found == language:
                yield page, text


def command_lines() -> list[str]:
    """Every ``cloister`` command that a page shows."""
    lines: list[str] = []
    for _, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["cloister"]:
                lines.append(shlex.join(words))
    return lines


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every subcommand of the command line."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path
        return
    for name, child in children.items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there."""
    broken = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("line", command_lines())
def test_commands_parse(line: str) -> None:
    """Every command in the documentation is one that the program takes, with these options."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no such command: {line}"
        command = command.commands[words.pop(0)]
    command.make_context("cloister", words)


@pytest.mark.parametrize("path", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_is_documented(path: tuple[str, ...]) -> None:
    """The command reference names every subcommand."""
    assert f"cloister {' '.join(path)}" in (ROOT / "docs" / "cli.md").read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    """The table of settings is complete and current."""
    page = (ROOT / "docs" / "settings.md").read_text()
    tables = dict(re.findall(r"^## `\[(\w+)\]`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for section in msgspec.structs.fields(Settings):
        rows = set(re.findall(r"^\| `\w+` \| `.*?` \|", tables[section.name], re.MULTILINE))
        fields = msgspec.structs.fields(section.type)
        assert rows == {f"| `{field.name}` | `{shown_default(field)}` |" for field in fields}


def shown_default(field: Any) -> str:
    """A setting's default as the page writes it."""
    return "[]" if field.default == () else repr(field.default).replace("'", '"')


@pytest.mark.parametrize("path", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_help_loses_no_words(path: tuple[str, ...]) -> None:
    """What stands in brackets in an option's help is not taken for markup."""
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    for option in command.params:
        words = getattr(option, "help", None) or ""
        assert Text.from_markup(words).plain == words, f"{option.name}: {words}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_reference_value_is_documented(scheme: str) -> None:
    """The page of reference values has each field as the code describes it."""
    page = (ROOT / "docs" / "reference-values.md").read_text()
    for name, about, meaning in describe(scheme):
        assert f"| `{name}` | {about} | {meaning} |" in page, f"[{scheme}] {name}"


@pytest.mark.parametrize(("page", "text"), list(blocks("python")), ids=lambda value: str(value)[-20:])
def test_python_examples_import(page: Path, text: str) -> None:
    """Examples compile, and everything that they import exists."""
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    with import_state():
        if "from ts." in text:
            torchserve.install()  # what handlers import is there in workers
        exec(compile(ast.Module(imports, []), str(page), "exec"), {})

"""The threat model's table of tests is complete and true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
THREATS = (
    *("Relay", "No freshness", "Unmeasured inputs", "Debug or old TCB", "Ignored verdict", "Truncation"),
    *("Steering", "Replay", "Content in logs", "Substitution, roll-back", "Key server at rest"),
    *("In-guest key theft", "Simulated TEE"),
)
"""Every threat that concerns keys."""
ACCEPTANCE = (
    *("wrong measurement", "replayed attestation", "wrong model id", "one flipped ciphertext bit"),
    "key server unreachable, cache warm and cold",
)
"""What every system with protected parameters has to show."""


def named_tests() -> set[tuple[str, str]]:
    """Every test that a page of the documentation names."""
    return {found for page in PAGES for found in NAMED.findall(page.read_text())}


@pytest.mark.parametrize(("file", "name"), sorted(named_tests()))
def test_named_tests_exist(file: str, name: str) -> None:
    """A test that the documentation names is there, and is not switched off."""
    path = ROOT / file
    assert path.exists(), file
    functions = {n.name: n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}
    assert name in functions, f"{file} has no {name}"
    marks = [ast.unparse(mark) for mark in functions[name].decorator_list]
    assert not [mark for mark in marks if "mark.skip(" in mark or "xfail" in mark]


def test_every_threat_has_its_tests() -> None:
    """Each threat to keys, and each acceptance case, has a row with a test."""
    page = (ROOT / "docs" / "threat-model.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if NAMED.search(line)]
    shown = [row[0].removeprefix("| ") for row in rows]
    assert set(THREATS + ACCEPTANCE) <= set(shown)
    assert all(row[-1].startswith("`tests/") for row in rows)

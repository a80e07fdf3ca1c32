"""The package tree is a ladder: imports go down it only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloister

# docs: DESIGN "Package tree". `cli` is last: it alone may import everything.
LADDER = (
    "errors",
    "settings",
    "crypto",
    "attest",
    "seal",
    "policy",
    "kbs",
    "torch",
    "ohttp",
    "engines",
    "optimize",
    "serve",
    "client",
    "verifier",
    "stream",
    "data",
    "federated",
    "pipelines",
    "deploy",
    "console",
    "cli",
)
PACKAGE = Path(cloister.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_parts(tree: ast.AST) -> Iterator[str]:
    """First name below ``cloister`` of every import in a module."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "cloister":
                names = [f"cloister.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "cloister" and len(parts) > 1:
                yield parts[1]


def violations(part: str, source: str) -> list[str]:
    """What a module of ``part`` imports from above itself."""
    rank = LADDER.index(part)
    return [
        name for name in imported_parts(ast.parse(source)) if name in LADDER and LADDER.index(name) > rank
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(module: Path) -> None:
    """A module imports only from its own part and from those below it."""
    part = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in {"__init__", "__main__"}:
        return
    assert part in LADDER, f"{part} has no place on the ladder"
    assert violations(part, module.read_text()) == []


def test_a_violation_is_seen() -> None:
    """The check above does find an upward import, in each way of writing one."""
    assert violations("crypto", "from cloister.serve.worker import main") == ["serve"]
    assert violations("crypto", "import cloister.kbs.client") == ["kbs"]
    assert violations("seal", "def f():\n    from cloister import client") == ["client"]
    assert violations("serve", "from cloister.seal.reader import open_sealed") == []

"""The JavaScript client as a package: what npm would publish, its types, its parsers under changed input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "clients" / "js"
TSC = Path(sys.prefix, "newman", "node_modules", ".bin", "tsc")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def run(*command: str | Path, folder: Path = PACKAGE) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_what_npm_packs() -> None:
    """The package is the one file, its types, its page and its license."""
    (packed,) = json.loads(run("npm", "pack", "--dry-run", "--json", "--offline"))
    names = {item["path"] for item in packed["files"]}
    assert names == {"cloister.js", "cloister.d.ts", "README.md", "LICENSE", "package.json"}
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@needs_node
def test_installed_package_is_found_by_its_name(tmp_path: Path) -> None:
    """A program that has the package imports it by its name, and the types name what it exports."""
    modules = tmp_path / "node_modules" / "@cloister"
    modules.mkdir(parents=True)
    (modules / "client").symlink_to(PACKAGE)
    script = "import * as all from '@cloister/client'; console.log(JSON.stringify(Object.keys(all)));"
    (tmp_path / "main.mjs").write_text(script)
    exported = set(json.loads(run("node", "--no-warnings", "main.mjs", folder=tmp_path)))
    declared = re.findall(
        r"^export (?:class|function|const) (\w+)", (PACKAGE / "cloister.d.ts").read_text(), re.M
    )
    assert exported == set(declared)


@pytest.mark.skipif(not TSC.exists(), reason="typescript is not installed")
def test_types(tmp_path: Path) -> None:
    """A strict TypeScript program passes, and one with a wrong kind of error or option does not."""
    modules = tmp_path / "node_modules" / "@cloister"
    modules.mkdir(parents=True)
    shutil.copytree(PACKAGE, modules / "client")
    good = (
        "import { CloisterClient, CloisterError } from '@cloister/client';\n"
        "const client = new CloisterClient('https://a', {"
        " verifier: 'https://v', verifierKeys: [{ kty: 'EC' }],"
        " acceptModels: (models) => models.every((model) => model.sandbox !== 'none'), token: 'k' });\n"
        "export async function ask(image: Uint8Array): Promise<string> {\n"
        "  try { await client.predict('digits', image, { version: '1.0' }); }\n"
        "  catch (error) { if (error instanceof CloisterError && error.kind === 'policy') throw error; }\n"
        "  const stream = await client.fetch('/x', { method: 'POST', body: 'q', stream: true });\n"
        "  return stream.text();\n}\n"
    )
    (tmp_path / "main.ts").write_text(good)
    flags = ("--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom")
    run(TSC, *flags, "main.ts", folder=tmp_path)
    for wrong in (good.replace("'policy'", "'polizy'"), good.replace("token:", "tokn:")):
        (tmp_path / "main.ts").write_text(wrong)
        done = subprocess.run([TSC, *flags, "main.ts"], cwd=tmp_path, capture_output=True, check=False)
        assert b"error TS" in done.stdout


@needs_node
@pytest.mark.parametrize("seed", [1, 2])
def test_changed_input_gives_declared_errors_only(seed: int) -> None:
    """Changed verdicts, keys, answers and streams give a CloisterError or nothing (fuzz/fuzz_client.mjs)."""
    said = json.loads(run("node", "--no-warnings", str(ROOT / "fuzz" / "fuzz_client.mjs"), "3", str(seed)))
    assert said["refused"] > 100
    assert all(said[name] > 10 for name in ("changedText", "changedClaims", "keyConfig", "answer", "capsule"))

"""The command line: exit codes, one-line errors, JSON for programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister import __version__
from cloister.cli.output import printable
from cloister.cli.walkthrough.stage import PIDS, SENTINEL, Stage
from cloister.errors import ConfigError


def cloister(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one real command line."""
    words = [sys.executable, "-m", "cloister", *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


def test_version() -> None:
    """The version is printed on one line."""
    done = cloister("--version")
    assert (done.returncode, done.stdout) == (0, f"cloister {__version__}\n")


@pytest.mark.parametrize("command", ["", "seal", "serve", "keys serve", "verify", "predict", "simulate init"])
def test_help_answers(command: str) -> None:
    """Every command explains itself."""
    done = cloister(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_unknown_command_is_a_usage_error() -> None:
    """A wrong word ends with 2 and a proposal."""
    done = cloister("sael")
    assert done.returncode == 2
    assert "seal" in done.stderr


def test_missing_settings_file_is_one_line(tmp_path: Path) -> None:
    """An error is one line that says what is wrong, and no traceback."""
    done = cloister("serve", "-c", tmp_path / "absent.toml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "absent.toml" in done.stderr


def test_verify_without_reference_values_is_refused() -> None:
    """Nothing is acceptable by default."""
    done = cloister("verify", "https://127.0.0.1:9")
    assert done.returncode == 2
    assert "reference values" in done.stderr


def test_unreachable_service_exits_with_five(tmp_path: Path) -> None:
    """A service that is not there is a transport error."""
    references = tmp_path / "reference.toml"
    references.write_text('[tdx]\nmr_td = ["' + "ab" * 48 + '"]\n')
    done = cloister("verify", "https://127.0.0.1:9", "-r", references)
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr


def test_settings_show_the_digest() -> None:
    """The digest that a server proves can be read before it starts."""
    document = json.loads(cloister("settings", "--json").stdout)
    assert len(bytes.fromhex(document["digest"])) == 48
    assert document["serve"]["mode"] == "protected"


def test_simulated_platform_and_its_measurements(tmp_path: Path) -> None:
    """`simulate init` makes a platform, `simulate measure` reference values that parse."""
    from cloister.attest import ReferenceValues

    assert cloister("simulate", "init", tmp_path / "platform").returncode == 0
    assert (tmp_path / "platform" / "root.pem").exists()
    text = cloister("simulate", "measure").stdout
    (tmp_path / "reference.toml").write_text(text)
    ReferenceValues.from_toml(tmp_path / "reference.toml")
    assert json.loads(cloister("simulate", "measure", "--json").stdout)["mr_td"] in text


def test_inspect_a_file_that_is_no_container(tmp_path: Path) -> None:
    """Malformed input ends with 4."""
    (tmp_path / "x.sealed").write_bytes(b"not a container")
    done = cloister("inspect", tmp_path / "x.sealed")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_archive_makes_a_torchserve_archive(tmp_path: Path) -> None:
    """`cloister archive` writes a manifest that names handler and model."""
    import zipfile

    (tmp_path / "handler.py").write_text("def handle(data, context):\n    return ['ok']\n")
    out = tmp_path / "m.mar"
    done = cloister("archive", "--name", "m", "--handler", tmp_path / "handler.py", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(zipfile.ZipFile(out).read("MAR-INF/MANIFEST.json"))
    assert manifest["model"]["modelName"] == "m"


def test_demo_leaves_foreign_folders_alone(tmp_path: Path) -> None:
    """A folder that is no earlier demo's is never emptied."""
    (tmp_path / "thesis.tex").write_text("years of work")
    done = cloister("demo", "--folder", tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "thesis.tex").exists()


def test_settings_for_people(tmp_path: Path) -> None:
    """Tables bear their names, the digest can be copied, and no password is shown."""
    file = tmp_path / "settings.toml"
    file.write_text('[keys]\ndatabase = "postgresql+psycopg://u:hunter2@db/keys"\n')
    done = cloister("settings", "-c", file)
    assert {"[serve]", "[keys]", "[attest]"} <= {line.strip() for line in done.stdout.splitlines()}
    last = done.stdout.splitlines()[-1]
    assert last.startswith("digest of [serve] and [attest]")
    assert len(bytes.fromhex(last.split()[-1])) == 48
    for said in (done.stdout, cloister("settings", "-c", file, "--json").stdout):
        assert "hunter2" not in said
        assert "postgresql+psycopg://u:(set)@db/keys" in said


def test_verifier_with_a_wrong_certificate(tmp_path: Path) -> None:
    """A certificate that is none is one line, not a traceback."""
    (tmp_path / "values.toml").write_text('[tdx]\nmr_td = ["' + "ab" * 48 + '"]\n')
    (tmp_path / "wrong.pem").write_text("no certificate")
    done = cloister(
        "verifier", "--key", "key.pem", "-r", "values.toml", "--listen", "127.0.0.1:0",
        "--certificate", "wrong.pem", "--certificate-key", "wrong.pem", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_printable() -> None:
    """Letters of every language stay, what commands a terminal does not."""
    assert printable("größe\t[x]\n東") == "größe\t[x]\n東"
    assert printable("a\r\nb\x1b[2J\x9b\u202e\x07") == "a\nb\\x1b[2J\\x9b\\u202e\\x07"


def test_a_demo_that_still_runs_is_not_replaced(tmp_path: Path) -> None:
    """The next one says what to stop, instead of taking its files away; afterwards it replaces them."""
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / SENTINEL).touch()
    words = [sys.executable, "-c", "input()", "-m", "cloister", "serve", "-c", f"{folder}/server.toml"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as running:
        (folder / PIDS).write_text(f"{running.pid} 999999999\n")
        while not Path(f"/proc/{running.pid}/cmdline").read_bytes():  # the kernel is still starting it
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="still running") as caught:
            Stage.create(folder)
        assert caught.value.hint == f"kill {running.pid}"
    assert (folder / PIDS).exists()
    shutil.rmtree(Stage.create(folder).plaintext)
    assert not (folder / PIDS).exists()


def test_seal_without_a_broker_is_one_line(tmp_path: Path) -> None:
    """Progress is for terminals: a log gets the error alone."""
    (tmp_path / "model.bin").write_bytes(b"weights")
    (tmp_path / "admin.token").write_text("token")
    done = cloister(
        "seal", "model.bin", "--name", "m", "--version", "1", "--signer", "signer.key", "--out", "m.sealed",
        "--broker", "https://127.0.0.1:9", "--admin-token", "admin.token", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1, done.stderr

"""A PostgreSQL server of the tests' own, in a temporary folder; skips with the reason where there is none."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port

PLACES = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin"))
WHERE = "install it with `apt-get install postgresql`"


def program(name: str) -> str:
    """Where one of PostgreSQL's programs is."""
    found = shutil.which(name, path=os.pathsep.join([*map(str, PLACES), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"no PostgreSQL server here ({name} is missing): {WHERE}")
    return found


def as_server(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of its programs; the server refuses to run as root, so then as somebody else."""
    prefix = ["setpriv", f"--reuid={_user()}", "--clear-groups", "--"] if os.geteuid() == 0 else []
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, cwd="/", check=False)
    if done.returncode:
        raise AssertionError(done.stderr + done.stdout)
    return done


@contextmanager
def running_server() -> Iterator[str]:
    """The address of a server with full synchronisation, as SQLAlchemy's URL without a database."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver here: pip install 'cloister[postgres]'")
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    folder = Path(tempfile.mkdtemp(prefix="cloister-pg-"))
    if os.geteuid() == 0:
        os.chown(folder, _user(), -1)
    port = free_port()
    data = str(folder / "data")
    try:
        as_server(initdb, "-D", data, "-U", "cloister", "--auth=trust", "-E", "UTF8", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c max_connections=60"
        as_server(pg_ctl, "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://cloister@127.0.0.1:{port}"
        finally:
            as_server(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def dump(server: str, name: str) -> str:
    """``pg_dump`` of one database, as text."""
    port = server.rpartition(":")[2]
    command = [program("pg_dump"), "-h", "127.0.0.1", "-p", port, "-U", "cloister", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _user() -> int:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    pytest.skip("no user to run PostgreSQL as: it refuses root")

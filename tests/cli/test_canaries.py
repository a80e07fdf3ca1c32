"""What must not leave the TEE does not, in a whole demo run and after it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from cloister.attest import ReferenceValues
from cloister.cli.walkthrough.canary import Markers, encodings, search
from cloister.client.session import Client
from cloister.errors import ServingError

SEED = "7c1d9e5b2a64f083"
MARKERS = Markers.from_seed(SEED)


def run_demo(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A whole demo, with every place where a program likes to write inside ``home``."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CLOISTER_")},
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    return subprocess.run(
        [sys.executable, "-m", "cloister", "demo", "--folder", str(home / "demo"), "--canary", SEED, *flags],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A demo that is left running: its home folder and everything it printed."""
    home = tmp_path_factory.mktemp("home")
    done = run_demo(home, "--keep")
    try:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield home, done.stdout + done.stderr
    finally:
        pids = home / "demo" / "pids"
        for pid in pids.read_text().split() if pids.exists() else []:
            stop(int(pid))


def stop(pid: int) -> None:
    """Ask a process to end and wait until it has."""
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


def is_held(folder: Path) -> bool:
    """Whether the process that made a private folder lives: other tests may run beside these."""
    try:
        held = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False


def leaks(text: str | bytes) -> list[str]:
    """Kinds of canary in a text, in any encoding."""
    content = text.encode() if isinstance(text, str) else text
    return [
        kind for kind, marker in MARKERS.named().items() if any(form in content for form in encodings(marker))
    ]


def caller(home: Path) -> tuple[str, Client]:
    """A verifying client of the kept demo, and its URL."""
    demo = home / "demo"
    port = next(line for line in (demo / "server.toml").read_text().splitlines() if "https_port" in line)
    url = f"https://127.0.0.1:{port.split('=')[1].strip()}"
    references = ReferenceValues.from_toml(demo / "caller-reference.toml")
    root = x509.load_pem_x509_certificate((demo / "platform" / "root.pem").read_bytes())
    return url, Client(url, reference_values=references, roots=[root])


def test_the_search_finds_a_canary_that_is_there(tmp_path: Path) -> None:
    """The search is not blind: each marker is found, plain, in hexadecimal and in base64."""
    for index, form in enumerate(encodings(MARKERS.weights)):
        (tmp_path / str(index)).write_bytes(b"before " + form + b" after")
    (tmp_path / "clean").write_bytes(b"nothing here")
    found = list(search([tmp_path], MARKERS))
    assert len(found) == len(encodings(MARKERS.weights))
    assert {kind for _, kind in found} == {"weights"}


def test_no_canary_on_disk_after_a_demo(kept: tuple[Path, str]) -> None:
    """Weights, handler source, requests and answers are in no file of a whole run."""
    home, _ = kept
    assert list(search([home], MARKERS)) == []
    assert len(list((home / "demo" / "logs").iterdir())) >= 8


def test_no_canary_in_what_the_demo_prints(kept: tuple[Path, str]) -> None:
    """The story shows predictions, never the secrets themselves."""
    assert leaks(kept[1]) == []


def test_a_failing_request_leaves_no_trace(kept: tuple[Path, str]) -> None:
    """A request that makes the handler fail is in no error, log, metric or file."""
    home, _ = kept
    url, client = caller(home)
    with client, pytest.raises(ServingError) as caught:
        client.predict("digits", f"not a png {MARKERS.request}".encode())
    assert leaks(str(caught.value)) == []
    assert leaks(httpx.get(url + "/metrics", verify=False).content) == []
    assert list(search([home], MARKERS)) == []


def test_no_canary_in_the_processes_that_anybody_can_list(kept: tuple[Path, str]) -> None:
    """Command lines and environments of server and workers hold no secret."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        for name in ("cmdline", "environ"):
            try:
                content = (process / name).read_bytes()
            except OSError:
                continue
            assert leaks(content) == []


def test_a_demo_ends_clean(tmp_path: Path) -> None:
    """Exit code 0, at least 48 of 50 images right, three refusals, nothing left in memory."""
    before = set(Path("/dev/shm").iterdir())
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert any(f"{right} of 50 images right" in done.stdout for right in (48, 49, 50))
    assert done.stdout.count("refused: ") >= 3
    assert "keys released" in done.stdout
    left = {path for path in set(Path("/dev/shm").iterdir()) - before if "cloister" in path.name}
    assert not [path for path in left if not is_held(path)]

"""The file under the log of decisions: torn lines, full disks, long files, and what was tampered with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import BadSignature, CloisterError, ConfigError
from cloister.kbs.audit_file import read_checkpoints
from cloister.kbs.chain import AuditBroken, AuditEvent
from cloister.policy.cedar import Decision
from cloister.policy.requests import ANONYMOUS
from cloister.serve.access.audit import DecisionLog
from cloister.serve.access.decision_file import DecisionFile, DecisionSummary, rotated_parts, verify_decisions
from tests.cli.test_main import cloister

KEY = ed25519.Ed25519PrivateKey.generate()
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def opened(path: Path, max_bytes: int = 0) -> DecisionFile:
    """The file, as a start of the server opens it."""
    return DecisionFile(path, KEY, now=NOW, max_bytes=max_bytes)


def event(number: int = 0) -> AuditEvent:
    """One decision."""
    return AuditEvent(kind="permitted", time=NOW, subject="a", resource=f"m{number}", claims={"count": 2})


def write(path: Path, batches: int, max_bytes: int = 0) -> None:
    """One run of the server that writes so many batches of two."""
    file = opened(path, max_bytes)
    for number in range(batches):
        file.append([event(number), event(number)], NOW)
    file.close()


def verified(path: Path, *, running: bool = False) -> DecisionSummary:
    """What the log holds."""
    return verify_decisions(path, KEY.public_key(), running=running)


@pytest.mark.parametrize("cut", [1, 20, 150, 400])
def test_a_torn_last_line(tmp_path: Path, cut: int) -> None:
    """What a kill leaves is taken away at the next start, which is noted; until then it is torn."""
    path = tmp_path / "d.jsonl"
    write(path, 3)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(AuditBroken):
        verified(path)
    assert verified(path, running=True).torn_bytes > 0
    write(path, 2)
    summary = verified(path)
    assert summary.torn_bytes == 0
    kinds = [json.loads(line)["entry"]["kind"] for line in path.read_text().splitlines() if '"entry"' in line]
    assert kinds.count("repaired") == 1
    assert kinds[-4:] == ["permitted"] * 4


def test_cut_between_two_lines(tmp_path: Path) -> None:
    """A batch without its checkpoint is open, and is kept by the next start."""
    path = tmp_path / "d.jsonl"
    write(path, 2)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(AuditBroken):
        verified(path)
    assert verified(path, running=True).entries == 4
    write(path, 1)
    assert verified(path).entries == 6


def test_rotation(tmp_path: Path) -> None:
    """A long log is several files and one chain, from run to run; the oldest may go, and this is said."""
    path = tmp_path / "d.jsonl"
    for _ in range(3):
        write(path, 10, max_bytes=4000)
    parts = rotated_parts(path)
    summary = verified(path)
    assert len(parts) > 4
    assert all(part.stat().st_size < 6000 for part in parts)
    assert (summary.entries, summary.permitted, summary.files) == (60, 120, len(parts) + 1)
    assert summary.begins_after == 0
    parts[0].unlink()
    rest = verified(path)
    assert rest.begins_after + rest.entries == 60
    assert rest.begins_after > 0


@pytest.mark.parametrize("attack", ["missing", "edited", "swapped", "emptied", "forged beginning"])
def test_tampering_with_parts(tmp_path: Path, attack: str) -> None:
    """A file taken from the middle, changed, exchanged or begun anew is found."""
    path = tmp_path / "d.jsonl"
    write(path, 30, max_bytes=4000)
    parts = rotated_parts(path)
    middle = parts[2]
    if attack == "missing":
        middle.unlink()
    elif attack == "edited":
        middle.write_text(middle.read_text().replace("permitted", "refused", 1))
    elif attack == "swapped":
        one, two = middle.read_bytes(), parts[3].read_bytes()
        middle.write_bytes(two)
        parts[3].write_bytes(one)
    elif attack == "emptied":
        middle.write_bytes(b"")
    else:
        for part in parts:
            part.unlink()
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(lines[0].replace(json.loads(lines[0])["hash"], "ab" * 32) + "".join(lines[1:]))
    with pytest.raises(CloisterError) as found:
        verified(path)
    assert not isinstance(found.value, ConfigError)
    if attack == "forged beginning":
        with pytest.raises(CloisterError):
            opened(path)


def test_a_crash_while_it_is_turned(tmp_path: Path) -> None:
    """A file that was turned away before the next one began is gone on from."""
    path = tmp_path / "d.jsonl"
    write(path, 3)
    path.rename(path.with_name("d.jsonl.000000000006"))
    write(path, 1)
    assert (verified(path).entries, verified(path).files) == (8, 2)
    path.write_bytes(b'{"form')
    write(path, 1)
    assert verified(path).entries == 6 + 1 + 2


def test_another_key(tmp_path: Path) -> None:
    """Neither read nor gone on with under another key."""
    path = tmp_path / "d.jsonl"
    write(path, 1)
    other = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(BadSignature):
        verify_decisions(path, other.public_key())
    with pytest.raises(BadSignature):
        DecisionFile(path, other, now=NOW)


def test_kept_checkpoints(tmp_path: Path) -> None:
    """An older copy that was put back contradicts a checkpoint that was kept."""
    path = tmp_path / "d.jsonl"
    write(path, 2)
    older = path.read_bytes()
    write(path, 2)
    (tmp_path / "kept.jsonl").write_bytes(path.read_bytes())
    path.write_bytes(older)
    kept = read_checkpoints(tmp_path / "kept.jsonl")
    with pytest.raises(AuditBroken, match="cut short"):
        verify_decisions(path, KEY.public_key(), checkpoints=kept)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written the decisions wait, half a batch is never left, and it is said once."""
    path = tmp_path / "d.jsonl"
    problems: list[str] = []
    log = DecisionLog(path, KEY, on_problem=lambda error: problems.append(error.message))
    log.record(ANONYMOUS, "predict", "before", "", Decision(True, (), ""))
    log._flush()
    real, full = os.write, [True]

    def write_some(descriptor: int, data: bytes) -> int:
        if full[0] and os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            real(descriptor, bytes(data[:50]))
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write_some)
    for number in range(5):
        log.record(ANONYMOUS, "predict", f"m{number}", "", Decision(True, (), ""))
        log._flush()
        assert verified(path).entries == 1
    assert len(problems) == 1
    assert "No space left" in problems[0]
    full[0] = False
    log.close()
    assert verified(path).permitted == 6


def test_a_disk_that_is_full_when_the_file_is_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch before it is written and not given back; the next one begins the new file as any other."""
    path = tmp_path / "d.jsonl"
    file = opened(path, max_bytes=1)
    real = os.write

    def full_for_beginnings(descriptor: int, raw: Any) -> int:
        if bytes(raw).startswith(b'{"format"'):
            raise OSError(28, "No space left on device")
        return real(descriptor, raw)

    monkeypatch.setattr(os, "write", full_for_beginnings)
    file.append([event(1)], NOW)  # raises nothing: it is on the disk
    with pytest.raises(ConfigError, match="No space left"):
        file.append([event(2)], NOW)
    monkeypatch.setattr(os, "write", real)
    file.append([event(2)], NOW)
    file.close()
    assert verified(path).entries == 2
    write(path, 1)
    assert verified(path).entries == 4


def test_memory_of_a_flood(tmp_path: Path) -> None:
    """More kinds of decisions than are told apart are counted by action."""
    log = DecisionLog(tmp_path / "d.jsonl", KEY)
    for number in range(25_000):
        log.record(ANONYMOUS, "predict", f"m{number}", "", Decision(False, (), "x"))
    assert len(log._new) <= 10_010
    log.close()
    assert verified(tmp_path / "d.jsonl").refused == 25_000


_WRITER = """
import sys, time
from pathlib import Path
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cloister.policy.cedar import Decision
from cloister.policy.requests import ANONYMOUS
from cloister.serve.access import audit
audit.WRITE_S = 0.0005
key = load_pem_private_key(Path(sys.argv[2]).read_bytes(), None)
log = audit.DecisionLog(Path(sys.argv[1]), key, max_bytes=20_000)
print("ready", flush=True)
number = 0
while True:
    number += 1
    log.record(ANONYMOUS, "predict", f"m{number}", "", Decision(True, (), ""))
    time.sleep(0.0001)
"""


def test_killed_again_and_again(tmp_path: Path) -> None:
    """After each kill -9 the next start goes on, and in the end the whole log verifies."""
    path, key = tmp_path / "d.jsonl", tmp_path / "key.pem"
    cloister_key(key)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(key)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.4)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert verified(path, running=True).entries > 0
    write(path, 1)
    summary = verified(path)
    assert summary.files > 2
    assert summary.permitted > 100


def cloister_key(path: Path) -> None:
    """The test's key as a file."""
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_command(tmp_path: Path) -> None:
    """``cloister access audit`` says what there is, and refuses what was changed."""
    path = tmp_path / "d.jsonl"
    write(path, 30, max_bytes=4000)
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "d.jsonl.pub").write_bytes(public)
    done = cloister("access", "audit", path, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["entries"], found["permitted"]) == (0, 60, 120)
    torn = path.read_bytes() + b'{"entry'
    path.write_bytes(torn)
    refused = cloister("access", "audit", path)
    assert (refused.returncode, "cut short" in refused.stderr) == (3, True)
    assert cloister("access", "audit", path, "--running").returncode == 0
    path.write_bytes(torn.replace(b"permitted", b"refused", 1))
    assert cloister("access", "audit", path, "--running").returncode == 3


@given(st.binary(max_size=300), st.integers(0, 5))
def test_garbage(tmp_path_factory: pytest.TempPathFactory, raw: bytes, lines: int) -> None:
    """Whatever stands in the file, verification and a start end with a summary or a declared error."""
    path = tmp_path_factory.mktemp("d") / "d.jsonl"
    write(path, 2)
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:lines])
    path.write_bytes(kept + raw)
    attempts: list[Callable[[], object]] = [lambda: verified(path), lambda: verified(path, running=True)]
    for attempt in (*attempts, lambda: opened(path).close()):
        try:
            attempt()
        except CloisterError:
            continue

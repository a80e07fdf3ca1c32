"""What logs say of failures: which one it is, never what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cloister.serve import faults
from cloister.serve.faults import EVERY_S, MAX_KNOWN, FaultLog
from cloister.serve.fingerprint import fingerprint
from cloister.serve.frames import Fault

CANARY = "canary_3b1f"


class Lines:
    """Stands in for the log."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def warning(self, event: str, **values: object) -> None:
        self.lines.append({"event": event, **values})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What is logged."""
    made = Lines()
    monkeypatch.setattr(faults, "log", made)
    return made.lines


def failed(text: str) -> BaseException:
    try:
        raise OSError(text)
    except OSError as error:
        return error


def test_fingerprint_is_of_the_place() -> None:
    """What an exception says is not in it."""
    assert fingerprint(failed("a")) == fingerprint(failed("b")) != fingerprint(ValueError("a"))


def test_each_failure_once_then_counted(lines: list[dict[str, object]]) -> None:
    """The first of its kind is logged at once, the others with their number a minute later."""
    clock = Clock()
    log = FaultLog("m", "1", clock=clock)
    for print_ in ("aa", "aa", "bb", "aa"):
        assert log.note(Fault("Prediction failed", "OSError", print_), guest=False).fingerprint == print_
    assert [line["fingerprint"] for line in lines] == ["aa", "bb"]
    clock.now = EVERY_S
    log.note(Fault("Prediction failed", "OSError", "cc"), guest=False)
    assert [(line["fingerprint"], line["times"]) for line in lines[2:]] == [("aa", 2), ("cc", 1)]


def test_a_guests_words_do_not_reach_the_log(lines: list[dict[str, object]]) -> None:
    """In protected mode caller and log get one hidden fingerprint, equal for equal failures."""
    log = FaultLog("m", "1")
    said = [log.note(Fault(CANARY, CANARY, print_, CANARY), guest=True) for print_ in (CANARY, CANARY, "x")]
    assert said[0].fingerprint == said[1].fingerprint != said[2].fingerprint
    assert [line["fingerprint"] for line in lines] == [said[0].fingerprint, said[2].fingerprint]
    assert CANARY not in json.dumps(lines)


def test_many_different_failures_are_bounded(lines: list[dict[str, object]]) -> None:
    """A handler that fails differently each time does not fill log or memory."""
    log = FaultLog("m", "1")
    for number in range(10 * MAX_KNOWN):
        log.note(Fault("x", "X", f"{number:012x}"), guest=True)
    assert len(lines) == MAX_KNOWN


@pytest.mark.parametrize(
    "crash",
    [
        "raise OSError(canary)",
        "t = threading.Thread(target=lambda: open(canary)); t.start(); t.join(); sys.exit(1)",
        "exec('class A:\\n def __del__(self): raise OSError(canary)'); A(); sys.exit(1)",
    ],
    ids=("main", "thread", "callback"),
)
def test_crashes_without_content(crash: str) -> None:
    """What nobody catches is a line with type and fingerprint; the text of the exception is nowhere."""
    script = (
        "import sys, threading\nfrom cloister.serve.faults import report_crashes_without_content\n"
        "from cloister.serve.log import configure_log\nconfigure_log('info')\n"
        f"report_crashes_without_content()\ncanary = '/{CANARY}'\n{crash}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["event"] == "crash"
    assert len(json.loads(line)["fingerprint"]) == 12
    assert CANARY not in done.stdout + done.stderr

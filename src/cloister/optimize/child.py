"""The process of one task: ``python -m cloister.optimize.child JOB FD PARENT``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from cloister.errors import MissingDependencyError
from cloister.optimize import recipes, trial
from cloister.optimize.job import Event, Failure, Job, Stage, Status
from cloister.optimize.timing import TooSlow

MAX_REASON = 300
_PR_SET_PDEATHSIG = 1
_NO_MEMORY = ("bad_alloc", "can't allocate memory", "Cannot allocate memory", "Failed to allocate memory")

TASKS: dict[str, Callable[[Job, Callable[[Stage], None]], Event]] = {
    "original": trial.try_original,
    "trial": trial.try_artifact,
    "convert": recipes.convert,
}


class Reporter:
    """Writes events to the search, and knows how far the task has come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.stage: Stage = "convert"

    def enter(self, stage: Stage) -> None:
        self.stage = stage
        self.send(Event(stage=stage))

    def send(self, event: Event) -> None:
        os.write(self._descriptor, msgspec.json.encode(event) + b"\n")


def perform(job: Job, reporter: Reporter) -> Event:
    """Do a task; whatever it raises becomes a failure in words."""
    try:
        return TASKS[job.task](job, reporter.enter)
    except TooSlow as error:
        return _failure(Status.EARLY_STOPPED, error)
    except (ImportError, MissingDependencyError) as error:
        return _failure(Status.LACK_DEPENDENCY, error)
    except MemoryError as error:
        return _failure(Status.OUT_OF_MEMORY, error)
    except Exception as error:  # noqa: BLE001 (a method that fails is a row of the table, whatever it raised)
        if any(words in str(error) for words in _NO_MEMORY):
            return _failure(Status.OUT_OF_MEMORY, error)
        at_convert = reporter.stage == "convert"
        return _failure(Status.FAIL_TO_CONVERT if at_convert else Status.FAIL_TO_FORWARD, error)


def _failure(status: Status, error: BaseException) -> Event:
    import traceback

    traceback.print_exc()  # to the log in the private folder
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {' '.join(lines[:2])}" if lines else type(error).__name__
    return Event(failure=Failure(status, reason[:MAX_REASON]))


def main(arguments: list[str]) -> None:
    """Read the job, do it, answer, and end without the libraries' own endings, which may hang."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(arguments[2]):
        return  # the search ended before the line above
    job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Job)
    sys.path[:0] = [place for place in job.search_path if place not in sys.path]
    reporter = Reporter(int(arguments[1]))
    reporter.send(perform(job, reporter))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])

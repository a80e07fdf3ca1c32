"""The OpenVINO engine against OpenVINO called directly."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.engines import openvino as openvino_engine
from cloister.engines.engine import EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.openvino import OpenVinoEngine, open_model
from cloister.errors import ConfigError, MalformedInput, MissingDependencyError
from tests.engines.models import small_ir

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")


def save(model: Any, folder: Path) -> ModelFiles:
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return ModelFiles.from_folder(folder)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 8), np.float32)


@pytest.fixture
def engine(tmp_path: Path) -> OpenVinoEngine:
    return open_model(save(small_ir(), tmp_path), "model.xml", EngineOptions(streams=2))


def test_answers_are_openvinos_own(engine: OpenVinoEngine, tmp_path: Path) -> None:
    """To the last bit, one by one, all together, and from several threads at a time."""
    direct = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = [rows(count, seed) for seed, count in enumerate((1, 3, 2, 1, 5, 4, 1, 2))]
    expected = [direct(x)[0] for x in inputs]
    one_by_one = [engine.infer({"x": x})["y"] for x in inputs]
    together = [found["y"] for found in engine.infer_each([{"x": x} for x in inputs])]
    with ThreadPoolExecutor(8) as pool:
        at_a_time = list(pool.map(lambda x: engine.infer({"x": x})["y"], inputs))
    for found in (one_by_one, together, at_a_time):
        for array, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, wanted)


def test_the_schema_is_the_models(engine: OpenVinoEngine) -> None:
    """Names, datatypes and sizes, open ones as -1; small models may have rows put together."""
    assert engine.schema.render() == "x FP32[-1,8]"
    assert engine.schema.outputs[0].render() == "y FP32[-1,3]"
    assert engine.streams == 2
    assert engine.rows > 1


def test_a_fixed_batch_is_never_joined(tmp_path: Path) -> None:
    """A model with a fixed first size gets just that."""
    engine = open_model(save(small_ir(rows=1), tmp_path), "model.xml", EngineOptions(rows=16))
    assert engine.rows == 1
    with pytest.raises(MalformedInput, match=r"found x FP32\[2,8\]; expected x FP32\[1,8\]"):
        engine.schema.check({"x": rows(2)})


def test_how_many_rows_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of a small model, in one stream; few of a large one, in as many streams as OpenVINO likes."""
    files = save(small_ir(), tmp_path)
    small = open_model(files, "model.xml", EngineOptions())
    assert (small.rows, small.streams) == (64, 1)
    monkeypatch.setattr(openvino_engine, "SMALL_BYTES", 0)
    large = open_model(files, "model.xml", EngineOptions(threads=1))
    assert large.rows == 4
    assert open_model(files, "model.xml", EngineOptions(rows=1)).rows == 1


def test_read_only_inputs_are_taken(engine: OpenVinoEngine) -> None:
    """What came in a request may lie in a buffer that nobody may write."""
    x = rows(2)
    x.flags.writeable = False
    assert engine.infer({"x": x})["y"].shape == (2, 3)


def test_answers_stay_what_they_were(engine: OpenVinoEngine) -> None:
    """The next inference does not write into the last one's answer."""
    first = engine.infer({"x": rows(1, 1)})["y"]
    copy = first.copy()
    for seed in range(4):
        engine.infer({"x": rows(1, seed)})
    np.testing.assert_array_equal(first, copy)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_precisions(tmp_path: Path, precision: str) -> None:
    """Each is taken, and what is computed is close."""
    files = save(small_ir(), tmp_path)
    exact = open_model(files, "model.xml", EngineOptions()).infer({"x": rows(4)})["y"]
    found = open_model(files, "model.xml", EngineOptions(precision=precision)).infer({"x": rows(4)})["y"]
    np.testing.assert_allclose(found, exact, atol=0.2)


def test_unnamed_ports_get_names(tmp_path: Path) -> None:
    """A model whose tensors have no names is served all the same."""
    model = small_ir()
    for port in (*model.inputs, *model.outputs):
        port.set_names(set())
    schema = open_model(save(model, tmp_path), "model.xml", EngineOptions()).schema
    assert [spec.name for spec in (*schema.inputs, *schema.outputs)] == ["input_0", "output_0"]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """Broken files, missing weights and unknown precisions are errors of configuration."""
    files = save(small_ir(), tmp_path)
    with pytest.raises(ConfigError, match="does not read"):
        open_model(ModelFiles({"m.xml": b"<net>", "m.bin": b""}), "m.xml", EngineOptions())
    with pytest.raises(ConfigError, match=r"no file 'm.bin'"):
        open_model(ModelFiles({"m.xml": bytes(files.read("model.xml"))}), "m.xml", EngineOptions())
    with pytest.raises(ConfigError, match="precision 'int4'"):
        open_model(files, "model.xml", EngineOptions(precision="int4"))


def test_without_openvino_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks the package is told what brings it."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError) as refused:
        open_model(ModelFiles({}), "model.xml", EngineOptions())
    assert "cloister[openvino]" in refused.value.hint


LOADS = """
import re, sys
from pathlib import Path
from cloister.engines.engine import EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.openvino import open_model
engine = open_model(ModelFiles.from_folder(Path(sys.argv[1])), "model.xml", EngineOptions(threads=1))
print("loaded", flush=True)
sys.stdin.readline()
for part in re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
    if "model.bin" in part.partition("\\n")[0]:
        print(*(re.search(rf"^{name}:\\s+(\\d+)", part, re.M)[1] for name in ("Rss", "Pss", "Anonymous")))
"""


def test_two_workers_share_the_weights() -> None:
    """The file's pages are mapped, not copied: each of two processes is charged with half of them."""
    ops = openvino.opset13
    x = ops.parameter([-1, 2048], np.float32, name="x")
    weights = np.random.default_rng(1).standard_normal((2048, 2048), np.float32)
    model = openvino.Model([ops.matmul(x, ops.constant(weights), False, False)], [x])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        openvino.save_model(model, Path(folder, "model.xml"), compress_to_fp16=False)
        command = [sys.executable, "-c", LOADS, folder]
        pipe = subprocess.PIPE
        with (
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as one,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as two,
        ):
            for process in (one, two):
                assert process.stdout is not None
                assert process.stdout.readline() == "loaded\n"
            out, _ = one.communicate("\n", timeout=60)
            two.communicate("\n", timeout=60)
    resident, charged, copied = map(int, out.split())
    assert resident * 1024 > 0.95 * weights.nbytes
    assert charged < 0.55 * resident
    assert copied == 0


def test_whole_numbers_over_32_bits_are_refused(tmp_path: Path) -> None:
    """OpenVINO would take 4,294,967,299 for 3, and answer for that."""
    from openvino import opset13

    ids = opset13.parameter([-1, 2], np.int64, name="ids")
    ids.output(0).set_names({"ids"})
    model = openvino.Model([opset13.convert(ids, "f32")], [ids])
    found = open_model(save(model, tmp_path), "model.xml", EngineOptions())
    (answer,) = found.infer({"ids": np.array([[-5, 2**31 - 1]])}).values()
    np.testing.assert_array_equal(answer, np.array([[-5, 2**31 - 1]], np.float32))
    for number in (2**32 + 3, 2**31, -(2**31) - 1, -(2**63)):
        with pytest.raises(MalformedInput, match="over 32 bits"):
            found.infer({"ids": np.array([[1, number]])})
    found.close()

"""Every form that a model comes in is brought into the forms that engines load, and computes the same."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from cloister.engines.convert import TREE_TYPES
from cloister.engines.engine import EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.table import open_engine
from cloister.optimize.data import load_metric
from cloister.optimize.deploy import engine_options, main_file
from cloister.optimize.job import Job, Status
from cloister.optimize.quantities import parse_drop
from cloister.optimize.recipes.torch import make_aoti, make_program
from cloister.optimize.recipes.trees import make_trees
from cloister.optimize.result import Goal
from cloister.optimize.samples import Samples, gather
from cloister.optimize.search import Plan, search
from cloister.optimize.source import Source, load, parse_source
from cloister.optimize.workspace import Workspace
from cloister.serve.direct.pack import pack_model
from cloister.serve.sandbox.plan import plan_for
from cloister.settings import ServeSettings
from tests.engines.models import MODELS
from tests.optimize import models
from tests.serve.sandbox.inside import run_confined

QUICK = {"latency_samples": 5, "throughput_s": 0.1, "concurrency": 2, "threads": 1}


def torchscript(folder: Path) -> Path:
    """A traced net."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(models.picture_net().eval(), torch.rand(2, 1, 16, 16))
        torch.jit.save(traced, folder / "net.pt")
    return folder / "net.pt"


def program(folder: Path) -> Path:
    """An exported program."""
    rows = torch.export.Dim("rows", min=1, max=64)
    net = models.picture_net().eval()
    exported = torch.export.export(net, (torch.rand(2, 1, 16, 16),), dynamic_shapes=({0: rows},))
    torch.export.save(exported, folder / "net.pt2")
    return folder / "net.pt2"


def onnx(folder: Path) -> Path:
    """An ONNX file."""
    pytest.importorskip("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            models.picture_net().eval(), (torch.rand(2, 1, 16, 16),), folder / "net.onnx",
            input_names=["pixels"], dynamic_axes={"pixels": {0: "rows"}}, dynamo=False,
        )  # fmt: skip
    return folder / "net.onnx"


def ir(folder: Path) -> Path:
    """OpenVINO's own files."""
    openvino = pytest.importorskip("openvino")
    model = openvino.convert_model(models.picture_net().eval(), example_input=torch.rand(2, 1, 16, 16))
    openvino.save_model(model, folder / "net.xml")
    return folder / "net.xml"


@pytest.mark.parametrize("make", [torchscript, program, onnx, ir])
def test_every_file_reaches_openvino(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """From each form of file, the converted model labels every picture as the net itself does."""
    pytest.importorskip("openvino")
    data = gather(models.pictures())
    plan = Plan(
        source=parse_source(str(make(tmp_path))),
        calibration=data,
        validation=data,
        metric=load_metric("accuracy"),
        metric_place="accuracy",
        includes=("openvino_fp32",),
        **QUICK,  # type: ignore[arg-type]
    )
    with Workspace(tmp_path) as workspace:
        row = search(plan, workspace).row("openvino_fp32")
    assert row.status is Status.SUCCESSFUL, row.reason
    assert row.metric == 1.0


def test_quantization_that_watches_accuracy(tmp_path: Path) -> None:
    """With a drop of nothing allowed, what INT8 would change for the worse stays as it was."""
    pytest.importorskip("nncf")
    data = gather(models.pictures())
    plan = Plan(
        source=Source("factory", "tests.optimize.models:picture_net"),
        calibration=data,
        validation=data,
        metric=load_metric("accuracy"),
        metric_place="accuracy",
        goal=Goal(max_drop=parse_drop("0.5%")),
        includes=("openvino_int8", "openvino_int8_accuracy"),
        accuracy_aware=True,
        **QUICK,  # type: ignore[arg-type]
    )
    with Workspace(tmp_path) as workspace:
        row = search(plan, workspace).row("openvino_int8_accuracy")
    assert row.status is Status.SUCCESSFUL, row.reason
    assert row.drop is not None
    assert row.drop <= 0.005


@pytest.mark.parametrize("make", ["tensorflow", "keras"])
def test_tensorflows_models_reach_openvino(make: str, tmp_path: Path) -> None:
    """From a SavedModel's folder without TensorFlow, from a Keras file with it; nothing else is kept."""
    made = MODELS[make](tmp_path)
    if made is None:
        pytest.skip("its packages are not installed")
    data = gather([made.inputs["x" if make == "keras" else "keras_tensor"]], labelled=False)
    plan = Plan(
        source=parse_source(str(made.file)),
        calibration=data,
        includes=("openvino_fp32",),
        **QUICK,  # type: ignore[arg-type]
    )
    with Workspace(tmp_path) as workspace:
        row = search(plan, workspace).row("openvino_fp32")
        assert row.status is Status.SUCCESSFUL, row.reason
        assert row.folder is not None
        assert sorted(path.name for path in row.folder.iterdir()) == ["model.bin", "model.xml"]
        engine = open_engine("openvino", ModelFiles.from_folder(row.folder), row.file, EngineOptions())
        (name,) = (spec.name for spec in engine.schema.inputs)
        (found,) = engine.infer({name: next(iter(made.inputs.values()))}).values()
        engine.close()
    np.testing.assert_allclose(found, next(iter(made.expected.values())), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("keras") is not None, reason="Keras is installed")
def test_a_keras_file_without_keras(tmp_path: Path) -> None:
    """The row says what is lacking, and how to get it is in its reason."""
    pytest.importorskip("openvino")
    (tmp_path / "net.keras").write_bytes(b"PK\x03\x04")
    plan = Plan(
        source=parse_source(str(tmp_path / "net.keras")),
        calibration=gather([np.zeros((2, 8), np.float32)], labelled=False),
        includes=("openvino_fp32",),
        **QUICK,  # type: ignore[arg-type]
    )
    with Workspace(tmp_path) as workspace:
        row = search(plan, workspace).row("openvino_fp32")
    assert row.status is Status.LACK_DEPENDENCY
    assert "net.keras needs Keras" in row.reason


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("make", ["xgboost", "lightgbm", "sklearn"])
def test_files_of_trees_are_optimized(make: str, kind: type, tmp_path: Path) -> None:
    """Each library's own file, with data of either precision, predicts the same in the engine."""
    joblib = pytest.importorskip("joblib")
    made = MODELS[make](tmp_path)
    if made is None:
        pytest.skip("its packages are not installed")
    file = made.file
    if make == "sklearn":
        import skops.io

        file = tmp_path / "forest.joblib"
        joblib.dump(skops.io.load(made.file, trusted=list(TREE_TYPES)), file)
    rows = np.concatenate([made.inputs["x"]] * 4).astype(kind)
    data = Samples([{"features": rows}], [np.concatenate([made.expected["scores"].argmax(1)] * 4)])
    plan = Plan(
        source=parse_source(str(file)),
        calibration=data,
        validation=data,
        metric=load_metric("accuracy"),
        metric_place="accuracy",
        includes=("trees",),
        **QUICK,  # type: ignore[arg-type]
    )
    with Workspace(tmp_path) as workspace:
        result = search(plan, workspace)
        row = result.row("trees")
        assert row.status is Status.SUCCESSFUL, row.reason
        assert (row.metric, result.row("original").metric) == (1.0, 1.0)
        assert row.cosine == pytest.approx(1)
        model = main_file(row)
        settings = {"kind": "trees", "options": engine_options(row)}
        pack_model(tmp_path / "t.mar", name="t", version="1", model=model, **settings)  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "t.mar") as archive:
        assert model.name in archive.namelist()


def test_weights_beside_an_onnx_model_go_with_it(tmp_path: Path) -> None:
    """PyTorch's exporter writes them into a file of their own; INT8 is compared with what it was made of."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("nncf")
    made = MODELS["onnxruntime"](tmp_path)
    if made is None:
        pytest.skip("its packages are not installed")
    file = tmp_path / "big.onnx"
    onnx.save_model(
        onnx.load(made.file), file, save_as_external_data=True, location="big.onnx.data", size_threshold=0
    )
    plan = Plan(
        source=parse_source(str(file)),
        calibration=Samples((made.inputs,)),
        includes=("openvino_int8", "onnxruntime_int8"),
        **QUICK,  # type: ignore[arg-type]
    )
    with Workspace(tmp_path) as workspace:
        result = search(plan, workspace)
        assert [row.name for row in result.rows] == ["onnxruntime_fp32", "openvino_int8", "onnxruntime_int8"]
        assert result.rows[0].status is Status.SUCCESSFUL, result.rows[0].reason
        # So small a net gains nothing, but it is converted.
        assert {row.status for row in result.rows} <= {Status.SUCCESSFUL, Status.EARLY_STOPPED}
        assert result.original is result.rows[0]
        assert (main_file(result.rows[0]).parent / "big.onnx.data").is_file()


def early_stopped(x: Any, y: Any) -> Any:
    """Goes on for rounds that make it worse, which its class leaves out."""
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=40, early_stopping_rounds=5, n_jobs=1)
    model.fit(x[:60], y[:60], eval_set=[(x[60:], 1 - y[60:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    return model


def two_classes(x: Any, y: Any) -> Any:
    """A library that gives one probability, and its class that gives two."""
    lightgbm = pytest.importorskip("lightgbm")
    return lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1).fit(x, y)


def one_number(x: Any, y: Any) -> Any:
    """A forest that gives a number for a row, where its engine gives a column."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    return ensemble.RandomForestRegressor(5, random_state=1).fit(x, x[:, 1] + y)


@pytest.mark.parametrize("make", [early_stopped, two_classes, one_number])
def test_trees_of_scikit_learns_interface_are_optimized(
    make: Callable[[Any, Any], Any], tmp_path: Path
) -> None:
    """The engine's answers are the ones of the object's own ``predict_proba`` or ``predict``."""
    joblib = pytest.importorskip("joblib")
    x = np.random.default_rng(1).normal(size=(80, 5)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    joblib.dump(make(x, y), tmp_path / "model.joblib")
    plan = Plan(
        source=parse_source(str(tmp_path / "model.joblib")),
        calibration=Samples(({"x": x},), (y,)),
        includes=("trees",),
        **QUICK,  # type: ignore[arg-type]
    )
    with Workspace(tmp_path) as workspace:
        row = search(plan, workspace).row("trees")
    assert row.status is Status.SUCCESSFUL, row.reason
    assert row.cosine == pytest.approx(1, abs=1e-6)


def job(tmp_path: Path, factory: str, data: Samples) -> Job:
    """A conversion of a model of the tests."""
    data.save(tmp_path / "data.npz")
    source = Source("factory", f"tests.optimize.models:{factory}")
    return Job(task="convert", source=source, data=str(tmp_path / "data.npz"))


def test_programs_take_any_number_of_rows_and_tokens(tmp_path: Path) -> None:
    """What is exported from a batch of two runs with others, and with other lengths."""
    name = make_program(job(tmp_path, "two_inputs", gather(models.sentences())), tmp_path)
    found = load(parse_source(str(tmp_path / name)))
    for rows, length in ((1, 8), (5, 11)):
        inputs = {"input_ids": torch.zeros(rows, length, dtype=torch.int64)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        assert found(inputs)["logits"].shape == (rows, 3)


@pytest.mark.parametrize("method", ["torch_bf16", "onnxruntime_fp32", "openvino_fp32"])
def test_models_of_transformers_reach_every_engine(method: str, tmp_path: Path) -> None:
    """Their answers are of a class that only their library knows, and their inputs go by name."""
    for package in ("transformers", "openvino", "onnxruntime", "onnx"):
        pytest.importorskip(package)
    plan = Plan(
        source=Source("factory", "tests.optimize.models:small_bert"),
        calibration=gather(models.sentences()),
        includes=(method,),
        **QUICK,  # type: ignore[arg-type]
    )
    with Workspace(tmp_path) as workspace:
        row = search(plan, workspace).row(method)
    assert row.status in {Status.SUCCESSFUL, Status.EARLY_STOPPED}, row.reason
    assert row.cosine is None or row.cosine > 0.99


def test_a_program_of_transformers_is_loaded_without_them(tmp_path: Path) -> None:
    """A worker has no need of the library; outputs keep their names."""
    pytest.importorskip("transformers")
    name = make_program(job(tmp_path, "small_bert", gather(models.sentences())), tmp_path)
    code = (
        "import sys; from pathlib import Path; from cloister.engines.engine import EngineOptions\n"
        "from cloister.engines.files import ModelFiles; from cloister.engines.table import open_engine\n"
        f"files = ModelFiles.from_folder(Path({str(tmp_path)!r}))\n"
        f"engine = open_engine('torch', files, {name!r}, EngineOptions())\n"
        "print([spec.name for spec in engine.schema.outputs], 'transformers' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "['last_hidden_state', 'pooler_output'] False\n"


def test_a_program_that_answers_with_a_class_of_a_library(tmp_path: Path) -> None:
    """Whoever exports a model of transformers as it is learns what to do instead."""
    pytest.importorskip("transformers")
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with torch.no_grad():
        program = torch.export.export(models.small_bert(), (tokens,), strict=False)
    torch.export.save(program, tmp_path / "bert.pt2")
    code = (
        "from pathlib import Path; from cloister.engines.engine import EngineOptions\n"
        "from cloister.engines.files import ModelFiles; from cloister.engines.table import open_engine\n"
        f"open_engine('torch', ModelFiles.from_folder(Path({str(tmp_path)!r})), 'bert.pt2', EngineOptions())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "ConfigError: PyTorch cannot load the program 'bert.pt2'" in said.stderr


IN_SANDBOX = """
import numpy as np
from cloister.engines.convert import TREE_TYPES
from cloister.engines.engine import EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.spec import parse_spec
from cloister.engines.table import open_engine
from cloister.serve.direct.model import options_of
from cloister.serve.manifest import parse_settings
spec = parse_spec(parse_settings((folder / "model/model-config.yaml").read_bytes()))
engine = open_engine("torch", ModelFiles.from_folder(folder / "model"), spec.engine.file, options_of(spec))
(answers,) = engine.infer({"input": np.load(folder / "model/x.npy")}).values()
result = answers.tolist()
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_library_compiled_ahead(tmp_path: Path) -> None:
    """AOTInductor's code computes what the net does: as a package here, and packed, in a sandbox."""
    data = gather(models.pictures())
    name = make_aoti(job(tmp_path, "picture_net", data), tmp_path)
    x = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        expected = models.picture_net().eval()(x).numpy()
    engine = open_engine("torch", ModelFiles.from_folder(tmp_path), name, EngineOptions(streams=2))
    for answers in engine.infer_each([{"input": x.numpy()}] * 3):
        np.testing.assert_allclose(next(iter(answers.values())), expected, atol=1e-4, rtol=1e-3)

    target = tmp_path / "net.mar"
    pack_model(target, name="net", version="1", model=tmp_path / name, kind="torch")
    with zipfile.ZipFile(target) as archive:
        assert "model.so" in archive.namelist()
        assert not [name for name in archive.namelist() if name.endswith(".pt2")]
        archive.extractall(tmp_path / "model")
    np.save(tmp_path / "model" / "x.npy", x.numpy())
    plan = msgspec.structs.replace(plan_for(ServeSettings(sandbox="best-effort")), scratch_bytes=64 << 20)
    state, found = run_confined(tmp_path, IN_SANDBOX, plan=plan)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3, err_msg=state)


def test_forests_become_files(tmp_path: Path) -> None:
    """A forest of scikit-learn in the form that the engine for trees reads."""
    joblib, treelite = pytest.importorskip("joblib"), pytest.importorskip("treelite")
    from sklearn.ensemble import RandomForestClassifier

    x = np.random.default_rng(1).normal(size=(80, 5)).astype(np.float32)
    joblib.dump(RandomForestClassifier(5, random_state=1).fit(x, x[:, 0] > 0), tmp_path / "forest.joblib")
    source = parse_source(str(tmp_path / "forest.joblib"))
    name = make_trees(Job(task="convert", source=source), tmp_path)
    assert treelite.Model.deserialize(str(tmp_path / name)).num_tree == 5

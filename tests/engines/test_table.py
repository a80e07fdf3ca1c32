"""Every engine against its own library called directly, from bytes in memory."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cloister.engines.convert import convert_model
from cloister.engines.engine import Engine, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.schema import ModelSchema, parse_schema
from cloister.engines.table import ENGINES, open_engine
from cloister.engines.torch import extract_library
from cloister.errors import ConfigError, MalformedInput, MissingDependencyError
from tests.engines.models import MODELS, SLOW_MODELS, Made


@dataclass
class Ready:
    """A model as its engine gets it."""

    made: Made
    files: ModelFiles
    file: str
    schema: ModelSchema | None

    def open(self, **options: object) -> Engine:
        given = EngineOptions(
            entry=str(self.made.options.get("entry", "")),
            schema=self.schema,
            **options,  # type: ignore[arg-type]
        )
        return open_engine(self.made.kind, self.files, self.file, given)


def make(name: str, folder: Path) -> Ready:
    """The model of this name, converted, its files as bytes."""
    made = {**MODELS, **SLOW_MODELS}[name](folder)
    if made is None:
        pytest.skip("its packages are not installed")
    converted = convert_model(made.kind, made.file, folder, compiled=bool(made.options.get("compiled")))
    paths = [converted.file, converted.file.with_suffix(".bin"), *made.extra_files]
    files = ModelFiles({path.name: path.read_bytes() for path in paths if path.is_file()})
    if converted.file.suffix == ".so":  # the system loads libraries from their places only
        files = ModelFiles.from_paths({converted.file.name: converted.file})
    said = made.options.get("schema")
    return Ready(made, files, converted.file.name, parse_schema(said) if said else converted.schema)


@pytest.fixture(scope="module")
def known() -> dict[str, Ready]:
    """Models that were made already."""
    return {}


@pytest.fixture(params=MODELS)
def ready(
    request: pytest.FixtureRequest, known: dict[str, Ready], tmp_path_factory: pytest.TempPathFactory
) -> Ready:
    name = request.param
    if name not in known:
        known[name] = make(name, tmp_path_factory.mktemp("model"))
    return known[name]


def test_answers_are_the_librarys_own(ready: Ready) -> None:
    """For all rows at once, one after the other, and several at a time."""
    engine, inputs, expected = ready.open(streams=2), ready.made.inputs, ready.made.expected
    assert engine.schema.check(inputs) == 4
    found = engine.infer(inputs)
    assert found.keys() == expected.keys()
    single = [{key: value[place : place + 1] for key, value in inputs.items()} for place in range(4)]
    each = engine.infer_each(single)
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(engine.infer, single))
    for key, wanted in expected.items():
        np.testing.assert_allclose(found[key], wanted, rtol=1e-6, atol=1e-7)
        for rows in (each, beside):
            together = np.concatenate([row[key] for row in rows])
            np.testing.assert_allclose(together, wanted, rtol=1e-5, atol=1e-6)
    engine.close()
    engine.close()


def test_the_schema_is_what_comes_out(ready: Ready) -> None:
    """Datatypes and sizes of the outputs are those that the schema says, for any number of rows."""
    engine = ready.open()
    for rows in (1, 3):
        inputs = {key: value[:rows] for key, value in ready.made.inputs.items()}
        found = engine.infer(inputs)
        for spec in engine.schema.outputs:
            assert spec.admits(_datatype(found[spec.name]), found[spec.name].shape)
    engine.close()


def test_read_only_inputs_are_taken(ready: Ready) -> None:
    """What came in a request may lie in a buffer that nobody may write."""
    inputs = {
        key: np.frombuffer(value.tobytes(), value.dtype).reshape(value.shape)
        for key, value in ready.made.inputs.items()
    }
    engine = ready.open()
    assert engine.infer(inputs).keys() == ready.made.expected.keys()
    engine.close()


def test_other_shapes_are_refused(ready: Ready) -> None:
    """The schema stops what is too wide, and names what it takes."""
    engine = ready.open()
    wide = {key: np.concatenate([value, value], axis=1) for key, value in ready.made.inputs.items()}
    with pytest.raises(MalformedInput, match="expected"):
        engine.schema.check(wide)
    engine.close()


def test_broken_files_are_refused(ready: Ready) -> None:
    """Half a file ends in an error of configuration, in every engine."""
    content = bytes(ready.files.read(ready.file))
    half = ModelFiles(
        {
            **{name: bytes(ready.files.read(name)) for name in ready.files.names()},
            ready.file: content[: len(content) // 2],
        }
    )
    with pytest.raises(ConfigError):
        Ready(ready.made, half, ready.file, ready.schema).open()


@pytest.mark.slow
def test_compiled_programs_answer_too(tmp_path: Path) -> None:
    """As a library, and as a package, which carries its schema; each gives the module's own answers."""
    ready = make("torch-compiled", tmp_path)
    test_answers_are_the_librarys_own(ready)
    package = tmp_path / "compiled-model.pt2"
    test_answers_are_the_librarys_own(
        Ready(ready.made, ModelFiles.from_paths({"model.pt2": package}), "model.pt2", None)
    )
    (tmp_path / "other").mkdir()
    packed = convert_model("torch", package, tmp_path / "other")
    assert packed.file.read_bytes() == ready.files.path(ready.file).read_bytes()
    assert packed.schema == ready.schema
    with pytest.raises(ConfigError, match="no package of compile_program"):
        extract_library(MODELS["torch"](tmp_path / "other").file, tmp_path / "x.so")  # type: ignore[union-attr]


def test_bfloat16_is_near(tmp_path: Path) -> None:
    """Autocast computes in bfloat16: near the exact answer, and not it."""
    ready = make("torch", tmp_path)
    (expected,) = ready.made.expected.values()
    (found,) = ready.open(precision="bf16").infer(ready.made.inputs).values()
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert (found != expected).any()
    assert found.dtype == np.float32


def test_weights_stay_in_the_file(tmp_path: Path) -> None:
    """The tensors of a safetensors file lie in its map: no copy is made of them."""
    from cloister.engines.torch import map_weights

    ready = make("torch-weights", tmp_path)
    content = ready.files.read(ready.file)
    start = np.frombuffer(content, np.uint8).ctypes.data
    tensors = map_weights(content)
    assert set(tensors) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(start < tensor.data_ptr() < start + len(content) for tensor in tensors.values())


@pytest.mark.parametrize(
    ("kind", "package", "file"),
    [
        ("torch", "torch", "m.pt2"),
        ("openvino", "openvino", "m.xml"),
        ("onnxruntime", "onnxruntime", "m.onnx"),
        ("trees", "xgboost", "m.json"),
        ("trees", "lightgbm", "m.txt"),
        ("trees", "treelite", "m.treelite"),
        ("tensorflow", "openvino", "m.xml"),
    ],
)
def test_a_missing_package_is_named(
    kind: str, package: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lacks it is told what brings it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError) as refused:
        open_engine(kind, ModelFiles({file: b"x"}), file, EngineOptions())
    assert "pip install 'cloister[" in refused.value.hint


@pytest.mark.parametrize(
    ("kind", "file", "options", "reason"),
    [
        ("magic", "m.pt2", EngineOptions(), "there is no engine 'magic'"),
        ("trees", "m.pkl", EngineOptions(), "trees reads"),
        ("trees", "m.json", EngineOptions(precision="bf16"), "as the model is stored"),
        ("onnxruntime", "m.onnx", EngineOptions(precision="bf16"), "as the model is stored"),
        ("torch", "m.bin", EngineOptions(), "torch reads"),
        ("torch", "m.pt2", EngineOptions(precision="fp16"), "fp32 or bf16"),
        ("torch", "m.pt", EngineOptions(), "engine.schema must"),
        ("torch", "m.safetensors", EngineOptions(), "engine.schema must"),
        ("tensorflow", "saved_model.pb", EngineOptions(), "not converted"),
        ("openvino", "n.xml", EngineOptions(), "no file 'n.xml'"),
    ],
)
def test_what_an_engine_does_not_take(kind: str, file: str, options: EngineOptions, reason: str) -> None:
    """Unknown engines, files, precisions and what is not said are errors that name it."""
    with pytest.raises(ConfigError, match=reason):
        open_engine(kind, ModelFiles({file: b"x"} if file != "n.xml" else {}), file, options)


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    """A pickle is code: it is not even opened, and what to do instead is said."""
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(ConfigError, match="is a pickle, which is code") as refused:
        convert_model("trees", tmp_path / name, tmp_path)
    assert "skops" in refused.value.hint


def test_skops_files_with_other_types_are_refused(tmp_path: Path) -> None:
    """Only scikit-learn's own trees are let in besides what skops knows as harmless."""
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    pytest.importorskip("treelite", reason="Treelite is not installed")
    skops.dump(Made, tmp_path / "model.skops")
    with pytest.raises(ConfigError, match="types that may run code"):
        convert_model("trees", tmp_path / "model.skops", tmp_path)


def test_the_table_is_the_documents() -> None:
    """Every engine has its place in the documentation."""
    text = Path(__file__).parents[2].joinpath("docs/engines.md").read_text()
    assert all(f"`{name}`" in text for name in ENGINES)


def _datatype(array: np.ndarray) -> str:
    from cloister.engines.schema import DATATYPE_OF

    return DATATYPE_OF[array.dtype.name]

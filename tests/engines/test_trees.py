"""How the engine for trees uses threads: not those of the libraries, and only where rows are many."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from cloister.engines.convert import convert_model
from cloister.engines.engine import Array, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.table import open_engine
from cloister.engines.trees import SHARE, Loaded, TreesEngine
from tests.engines.models import MODELS


class Sums:
    """Stands for a library: adds up each row, and notes who asked for how many."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, rows: Array) -> Array:
        self.asked.append((len(rows), threading.get_ident()))
        return np.asarray(rows.sum(axis=1))


@pytest.mark.parametrize(
    ("rows", "threads", "shares"),
    [(1, 4, [1]), (2 * SHARE - 1, 4, [2 * SHARE - 1]), (2 * SHARE + 1, 4, [SHARE, SHARE + 1]),
     (4 * SHARE, 2, [2 * SHARE] * 2), (4 * SHARE, 1, [4 * SHARE])],
)  # fmt: skip
def test_many_rows_are_divided(rows: int, threads: int, shares: list[int]) -> None:
    """Few rows stay in the caller's thread; each thread gets enough of many; the order is kept."""
    sums = Sums()
    engine = TreesEngine(Loaded(sums, 3, "FP32", "FP32"), threads=threads, streams=1, rows=256)
    sums.asked.clear()
    inputs = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    found = engine.infer({"x": inputs})["scores"]
    np.testing.assert_array_equal(found, inputs.sum(axis=1)[:, None])
    assert sorted(count for count, _ in sums.asked) == shares
    here = threading.get_ident()
    assert all((who == here) == (len(shares) == 1) for _, who in sums.asked)


@pytest.mark.parametrize("owner", ["class", "booster"])
def test_early_stopping_is_xgboosts_own(owner: str, tmp_path: Path) -> None:
    """Its scikit-learn class predicts up to its best round, its ``Booster`` with all; files keep to that."""
    xgboost = pytest.importorskip("xgboost")
    x = np.random.default_rng(1).normal(size=(80, 5)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=40, early_stopping_rounds=5, n_jobs=1)
    model.fit(x[:60], y[:60], eval_set=[(x[60:], 1 - y[60:])], verbose=False)
    booster = model.get_booster()
    assert model.best_iteration + 1 < booster.num_boosted_rounds()
    file = tmp_path / "m.ubj"
    (model if owner == "class" else booster).save_model(file)
    expected = model.predict_proba(x)[:, 1] if owner == "class" else booster.inplace_predict(x)
    engine = open_engine("trees", ModelFiles.from_folder(tmp_path), "m.ubj", EngineOptions())
    np.testing.assert_allclose(engine.infer({"x": x})["scores"][:, 0], expected, rtol=1e-6)
    engine.close()


@pytest.mark.parametrize("name", ["xgboost", "lightgbm", "sklearn"])
def test_divided_rows_get_the_same_scores(name: str, tmp_path: Path) -> None:
    """Each library answers for two halves beside each other as for all rows in one thread."""
    made = MODELS[name](tmp_path)
    if made is None:
        pytest.skip("its packages are not installed")
    converted = convert_model(made.kind, made.file, tmp_path)
    files = ModelFiles({converted.file.name: converted.file.read_bytes()})
    one, two = (
        open_engine(made.kind, files, converted.file.name, EngineOptions(threads=threads))
        for threads in (1, 2)
    )
    rows = np.concatenate([made.inputs["x"]] * (SHARE // 2 + 1))
    assert len(rows) > 2 * SHARE
    np.testing.assert_array_equal(two.infer({"x": rows})["scores"], one.infer({"x": rows})["scores"])
    one.close()
    two.close()

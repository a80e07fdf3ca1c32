"""Forests and boosted trees: XGBoost, LightGBM, and scikit-learn's by way of Treelite.

======================= ====================================================
file                    what it is
======================= ====================================================
``.json``, ``.ubj``     XGBoost's own formats
``.txt``                LightGBM's own format
``.treelite``           Treelite's, made of scikit-learn's forests (``convert``)
======================= ====================================================

None of these holds code. A pickle does: it is not taken here in any case.

Each library is told to use one thread, and many rows are divided here among threads of Python's, which these
libraries let run beside each other. Their own teams of threads (OpenMP) wait for each other at the end of
every call: on cores that have anything else to do, such as those of a server, a call of 0.2 ms takes 40 ms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cloister.engines.engine import Array, Arrays, EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.schema import ANY, Datatype, ModelSchema, TensorSpec
from cloister.engines.threads import available_cores, infer_in_threads
from cloister.errors import ConfigError, MissingDependencyError

INPUT, OUTPUT = "x", "scores"
ROWS = 256
SHARE = 512
"""Rows that are worth a thread: for fewer, what a thread costs is more than it saves."""
Predict = Callable[[Array], Array]


class Loaded:
    """A forest that is ready: how it predicts, and what it takes."""

    def __init__(self, predict: Predict, features: int, taken: Datatype, given: Datatype) -> None:
        self.predict = predict
        self.features = features
        self.taken: Datatype = taken
        self.given: Datatype = given


def open_model(files: ModelFiles, file: str, options: EngineOptions) -> TreesEngine:
    """Load a model.

    Raises:
        ConfigError: the file is none of these, is broken, or a precision was asked for.
        MissingDependencyError: the library that reads it is not installed.
    """
    load = _FORMATS.get(file[file.rfind(".") :])
    if load is None:
        hint = "export it with skops.io.dump and pack that: cloister archive converts it"
        raise ConfigError(f"trees reads {', '.join(_FORMATS)}, not {file[:256]!r}", hint=hint)
    if options.precision not in ("", "fp32"):
        raise ConfigError(f"trees computes as the model is stored, not in {options.precision!r}")
    content = bytes(files.read(file))
    streams = options.streams or 1
    try:
        loaded = load(content)
    except ConfigError:
        raise
    except Exception as error:  # each library has errors of its own
        raise ConfigError(f"{file[:256]!r} cannot be read") from error
    threads = max(1, (options.threads or available_cores()) // streams)
    return TreesEngine(loaded, threads=threads, streams=streams, rows=options.rows or ROWS)


class TreesEngine:
    """One forest: rows of features to rows of scores."""

    def __init__(self, loaded: Loaded, *, threads: int, streams: int, rows: int) -> None:
        self._predict: Predict | None = loaded.predict
        self._threads = threads
        probe = self._scores(np.zeros((1, loaded.features), _DTYPES[loaded.taken]))
        self.schema = ModelSchema(
            (TensorSpec(INPUT, loaded.taken, (ANY, loaded.features)),),
            (TensorSpec(OUTPUT, loaded.given, (ANY, probe.shape[1])),),
        )
        self.streams = streams
        self.rows = rows
        self._turns = threading.BoundedSemaphore(streams)

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        rows = inputs[INPUT]
        shares = min(self._threads, len(rows) // SHARE)
        with self._turns:
            if shares < 2:
                return self._infer(inputs)
            divided = [{INPUT: part} for part in np.array_split(rows, shares)]
            found = infer_in_threads(self._infer, divided, shares)
        return {OUTPUT: np.concatenate([part[OUTPUT] for part in found])}

    def infer_each(self, batches: Sequence[Arrays]) -> list[dict[str, Array]]:
        return infer_in_threads(self.infer, batches, self.streams)

    def close(self) -> None:
        self._predict = None

    def _infer(self, inputs: Arrays) -> dict[str, Array]:
        return {OUTPUT: self._scores(inputs[INPUT])}

    def _scores(self, rows: Array) -> Array:
        assert self._predict is not None
        scores = self._predict(rows)
        return np.ascontiguousarray(scores.reshape(len(rows), -1))


_DTYPES = {"FP32": np.float32, "FP64": np.float64}


def _load_xgboost(content: bytes) -> Loaded:
    try:
        import xgboost
    except ImportError as error:
        raise _missing("XGBoost") from error
    booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(content))
    booster.set_param({"nthread": 1})
    rounds = (0, rounds_of(booster))
    return Loaded(
        lambda rows: np.asarray(
            booster.inplace_predict(rows, iteration_range=rounds, validate_features=False)
        ),
        booster.num_features(),
        "FP32",
        "FP32",
    )


def rounds_of(booster: Any) -> int:
    """How many rounds of an XGBoost model predict; 0 for all.

    After early stopping XGBoost's scikit-learn classes predict with the rounds up to the best one, and write
    into the file that it is theirs; a plain ``Booster`` predicts with all.
    """
    best = booster.attr("best_iteration")
    if best is None or booster.attr("scikit_learn") is None:
        return 0
    return min(int(best) + 1, int(booster.num_boosted_rounds()))


def _load_lightgbm(content: bytes) -> Loaded:
    try:
        import lightgbm
    except ImportError as error:
        raise _missing("LightGBM") from error
    if b"\nend of trees" not in content:  # LightGBM's own parser runs over the end of what is cut off
        raise ConfigError("a LightGBM model that is cut off")
    booster = lightgbm.Booster(model_str=content.decode())
    return Loaded(
        lambda rows: np.asarray(booster.predict(rows, num_threads=1)),
        booster.num_feature(),
        "FP64",
        "FP64",
    )


def _load_treelite(content: bytes) -> Loaded:
    try:
        import treelite
    except ImportError as error:
        raise _missing("Treelite") from error
    model = treelite.Model.deserialize_bytes(content)
    kind: Datatype = "FP64" if model.input_type == "float64" else "FP32"
    return Loaded(
        lambda rows: np.asarray(treelite.gtil.predict(model, rows, nthread=1)),
        model.num_feature,
        kind,
        kind,
    )


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(f"the engine trees needs {package}", hint="pip install 'cloister[trees]'")


_FORMATS: dict[str, Callable[[bytes], Loaded]] = {
    ".json": _load_xgboost,
    ".ubj": _load_xgboost,
    ".txt": _load_lightgbm,
    ".treelite": _load_treelite,
}

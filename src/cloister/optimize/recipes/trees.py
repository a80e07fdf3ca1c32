"""Trees: the form of their own library that the engine reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloister.errors import ConfigError
from cloister.optimize.job import Job
from cloister.optimize.source import load

_SUFFIX = {"xgboost": ".ubj", "lightgbm": ".txt"}


def make_trees(job: Job, folder: Path) -> str:
    """The ensemble as a file: the user's own, or one that is written from the object."""
    place = Path(job.source.place)
    if job.source.form in _SUFFIX:
        name = f"model{place.suffix}"
        (folder / name).symlink_to(place)
        return name
    model = load(job.source)
    writer = _WRITERS.get(type(model).__module__.partition(".")[0])
    if writer is None:
        raise ConfigError(f"a {type(model).__name__} has no form that the engine reads")
    return writer(model, folder)


def _xgboost(model: Any, folder: Path) -> str:
    model.save_model(folder / "model.ubj")
    return "model.ubj"


def _lightgbm(model: Any, folder: Path) -> str:
    getattr(model, "booster_", model).save_model(folder / "model.txt")
    return "model.txt"


def _sklearn(model: Any, folder: Path) -> str:
    import treelite

    treelite.sklearn.import_model(model).serialize(str(folder / "model.treelite"))
    return "model.treelite"


_WRITERS = {"xgboost": _xgboost, "lightgbm": _lightgbm, "sklearn": _sklearn}

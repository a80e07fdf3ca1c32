"""A user's model: what form it has, and how it is loaded.

Factories, pickles and ``.joblib`` files run code of whoever made them; so only in the process of a task, and
only because the user named them.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloister.errors import ConfigError, MissingDependencyError
from cloister.optimize.job import Family, Source
from cloister.optimize.program import Program

_SUFFIXES = {
    ".pt2": "pt2",
    ".pt": "torchscript",
    ".pth": "torchscript",
    ".ts": "torchscript",
    ".onnx": "onnx",
    ".xml": "ir",
    ".keras": "keras",
    ".h5": "keras",
    ".ubj": "xgboost",
    ".xgb": "xgboost",
    ".json": "xgboost",
    ".lgb": "lightgbm",
    ".txt": "lightgbm",
    ".joblib": "sklearn",
    ".pkl": "sklearn",
}
_FAMILY: dict[str, Family] = {
    "pt2": "torch",
    "torchscript": "torch",
    "onnx": "onnx",
    "ir": "ir",
    "savedmodel": "tensorflow",
    "keras": "tensorflow",
    "xgboost": "trees",
    "lightgbm": "trees",
    "sklearn": "trees",
}
KNOWN = "module:factory, a SavedModel folder, or a file ending in " + ", ".join(_SUFFIXES)


def parse_source(text: str) -> Source:
    """The source that an argument names.

    Raises:
        ConfigError: nothing is there, or the form is not known.
    """
    path = Path(text)
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return Source("savedmodel", str(path.resolve()))
    if path.is_file():
        form = _SUFFIXES.get(path.suffix.lower())
        if form is None:
            raise ConfigError(f"{text[:256]} is a file of no known kind", hint=f"give {KNOWN}")
        return Source(form, str(path.resolve()))
    module, colon, name = text.partition(":")
    if colon and all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        return Source("factory", text)
    raise ConfigError(f"there is no model {text[:256]!r}", hint=f"give {KNOWN}")


def family_of(source: Source) -> Family | None:
    """What kind of model it is; None for a factory, which must be called to know."""
    return _FAMILY.get(source.form)


def find_attribute(text: str, what: str) -> Any:
    """What ``module:name`` names.

    Raises:
        ConfigError: there is no such module or name.
    """
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{what} {text[:256]!r} is not of the form module:function")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # a package that the user's module needs
        raise ConfigError(
            f"{what}: there is no module {module_name!r}", hint="it is looked for here too"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{what}: {module_name} has no {attribute}") from error
    return found


def load(source: Source) -> Any:
    """The model as an object of its own library.

    Raises:
        ConfigError: a factory did not give a model.
        MissingDependencyError: the library is not installed.
    """
    return _LOADERS[source.form](source.place)


def family_of_object(model: Any) -> Family:
    """What kind of model an object is, by the library that its class comes from.

    Raises:
        ConfigError: of none that is known.
    """
    if isinstance(model, Program):
        return "torch"
    libraries = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if "torch" in libraries:
        return "torch"
    if libraries & {"xgboost", "lightgbm", "sklearn"}:
        return "trees"
    if libraries & {"keras", "tensorflow"}:
        return "tensorflow"
    raise ConfigError(f"a {type(model).__name__} is no model that can be optimized")


def forward_names(model: Any) -> list[str]:
    """The names of what a torch module's ``forward`` takes, in order."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError, AttributeError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def required_inputs(model: Any) -> int:
    """How many inputs a torch module cannot do without."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError, AttributeError):
        return 0
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return sum(each.kind in kinds and each.default is inspect.Parameter.empty for each in parameters)


def input_names(model: Any, given: list[str]) -> list[str]:
    """The names of a torch model's inputs for data with these names.

    Data without names of its own (``input_0``) takes those of ``forward``, in order.
    """
    names = list(model.names) if isinstance(model, Program) else forward_names(model)
    if set(given) <= set(names):
        return given
    return names[: len(given)] if len(names) >= len(given) else given


def _factory(place: str) -> Any:
    model = find_attribute(place, "the model")
    if callable(model) and not hasattr(model, "forward"):
        model = model()
    return _settled(model)


def _settled(model: Any) -> Any:
    if family_of_object(model) == "torch" and hasattr(model, "eval"):
        model.eval()
    return model


def _pickled(place: str) -> Any:
    import pickle

    with Path(place).open("rb") as file:
        return _settled(pickle.load(file))  # noqa: S301 (written by the search itself)


def _pt2(place: str) -> Any:
    torch = _library("torch", "torch")
    return Program(torch.export.load(place))


def _torchscript(place: str) -> Any:
    torch = _library("torch", "torch")
    return torch.jit.load(place, map_location="cpu").eval()


def _xgboost(place: str) -> Any:
    booster = _library("xgboost", "trees").Booster()
    booster.load_model(place)
    return booster


def _lightgbm(place: str) -> Any:
    return _library("lightgbm", "trees").Booster(model_file=place)


def _sklearn(place: str) -> Any:
    return _library("joblib", "trees").load(place)


def _nothing(place: str) -> Any:
    raise ConfigError(f"{Path(place).name} is converted without being loaded")


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"this model needs {name}", hint=f"pip install 'cloister[{extra}]'"
        ) from error


_LOADERS: Mapping[str, Callable[[str], Any]] = {
    "factory": _factory,
    "pickle": _pickled,
    "pt2": _pt2,
    "torchscript": _torchscript,
    "onnx": _nothing,
    "ir": _nothing,
    "savedmodel": _nothing,
    "keras": _nothing,
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "sklearn": _sklearn,
}
FORMS = tuple(_LOADERS)


def search_path() -> tuple[str, ...]:
    """Where this process finds modules, the working folder first, for a process of its own."""
    return (str(Path.cwd()), *(place for place in sys.path if place))

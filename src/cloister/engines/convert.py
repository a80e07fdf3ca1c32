"""Model files that no engine loads as they are, made into ones that it does, by their owner before packing.

=========================== ============================ ==================================
engine                      from                         to
=========================== ============================ ==================================
tensorflow                  SavedModel (folder), ``.pb`` OpenVINO's IR; without TensorFlow
tensorflow                  ``.keras``, ``.h5``          the same; Keras has to be installed
trees                       ``.skops`` (scikit-learn)    ``.treelite``
torch, with ``compiled``    ``.pt2``, a program          a library for this processor
torch                       ``.pt2``, a package of       the package's library, which a sandbox can load
                            ``compile_program``
=========================== ============================ ==================================

Whatever is not listed passes as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cloister.engines import torch as pytorch
from cloister.engines.files import ModelFiles
from cloister.engines.openvino import import_openvino
from cloister.engines.schema import ModelSchema
from cloister.errors import ConfigError, MissingDependencyError

PICKLES = (".pkl", ".pickle", ".joblib", ".sav")

TREE_TYPES = ("sklearn.tree._tree.Tree",)
"""Types of scikit-learn's forests that skops leaves to its caller: arrays in a compiled class."""


class Converted(NamedTuple):
    """A file that the engine loads."""

    file: Path
    schema: ModelSchema | None = None
    """Where the new file does not say it itself."""


def convert_model(kind: str, model: Path, folder: Path, *, compiled: bool = False) -> Converted:
    """The file to pack for the engine ``kind``.

    Args:
        folder: where a new file goes.
        compiled: PyTorch: compile for this machine's processor.
    Raises:
        ConfigError: the file is not there, is a pickle, or cannot be converted.
        MissingDependencyError: a package that reads it is not installed.
    """
    if not model.exists():
        raise ConfigError(f"cannot pack {model}: no such file")
    if model.suffix in PICKLES:
        raise ConfigError(
            f"{model.name} is a pickle, which is code",
            hint="scikit-learn: skops.io.dump; XGBoost and LightGBM: save_model; or give a --handler",
        )
    try:
        if kind == "tensorflow":
            return _from_tensorflow(model, folder)
        if kind == "trees" and model.suffix == ".skops":
            return Converted(_from_skops(model, folder))
        if kind == "torch" and model.suffix == ".pt2" and pytorch.is_compiled(_content(model)):
            return _extract(model, folder)
        if kind == "torch" and compiled:
            return _compile(model, folder)
    except (ConfigError, MissingDependencyError):
        raise
    except Exception as error:  # the converters raise anything
        raise ConfigError(f"{model.name} cannot be converted: {type(error).__name__}") from error
    return Converted(model)


def _from_tensorflow(model: Path, folder: Path) -> Converted:
    if model.suffix == ".xml":
        return Converted(model)
    make = _read_keras if model.suffix in (".keras", ".h5", ".hdf5") else _read_saved
    openvino = import_openvino()
    target = folder / f"{model.stem or model.name}.xml"
    openvino.save_model(make(openvino, model, folder), target, compress_to_fp16=False)
    return Converted(target)


def _read_saved(openvino: Any, model: Path, _: Path) -> Any:
    if model.is_dir() and not (model / "saved_model.pb").is_file():
        raise ConfigError(f"{model} is a folder without saved_model.pb")
    return openvino.Core().read_model(model)


def _read_keras(openvino: Any, model: Path, folder: Path) -> Any:
    """Exported by Keras as a SavedModel, which OpenVINO then reads."""
    try:
        import keras
    except ImportError as error:
        raise MissingDependencyError(
            f"{model.name} needs Keras to be converted", hint="pip install 'cloister[tensorflow]'"
        ) from error
    loaded = keras.saving.load_model(model, compile=False, safe_mode=True)
    exported = folder / "exported"
    loaded.export(exported, format="tf_saved_model", verbose=False)
    return _read_saved(openvino, exported, folder)


def _from_skops(model: Path, folder: Path) -> Path:
    try:
        import skops.io
        import treelite
    except ImportError as error:
        raise MissingDependencyError(
            f"{model.name} needs skops and Treelite to be converted", hint="pip install 'cloister[trees]'"
        ) from error
    # What is not known as harmless is refused: a model file is data, and is to stay so.
    unknown = sorted(set(skops.io.get_untrusted_types(file=model)) - set(TREE_TYPES))
    if unknown:
        raise ConfigError(f"{model.name} holds types that may run code: {', '.join(unknown)[:256]}")
    converted = treelite.sklearn.import_model(skops.io.load(model, trusted=list(TREE_TYPES)))
    target = folder / f"{model.stem}.treelite"
    target.write_bytes(converted.serialize_bytes())
    return target


def _compile(model: Path, folder: Path) -> Converted:
    torch = pytorch.import_torch()
    if model.suffix != ".pt2":
        raise ConfigError("only an exported program (.pt2) can be compiled")
    package = folder / f"compiled-{model.name}"
    pytorch.compile_program(torch.export.load(model), package)
    return _extract(package, folder, model.stem)


def _extract(package: Path, folder: Path, name: str = "") -> Converted:
    library = folder / f"{name or package.stem}.so"
    return Converted(library, pytorch.extract_library(package, library))


def _content(model: Path) -> memoryview:
    return ModelFiles.from_paths({model.name: model}).read(model.name)

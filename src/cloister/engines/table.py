"""The engines by name."""

from __future__ import annotations

from cloister.engines import onnxruntime, openvino, tensorflow, torch, trees
from cloister.engines.engine import Engine, EngineOptions, OpenModel
from cloister.engines.files import ModelFiles
from cloister.errors import ConfigError

ENGINES: dict[str, OpenModel] = {
    "torch": torch.open_model,
    "openvino": openvino.open_model,
    "onnxruntime": onnxruntime.open_model,
    "trees": trees.open_model,
    "tensorflow": tensorflow.open_model,
}


def open_engine(kind: str, files: ModelFiles, file: str, options: EngineOptions) -> Engine:
    """Load a model into the engine of this name.

    Raises:
        ConfigError: there is no such engine, or it does not take the file or an option.
        MissingDependencyError: the engine's package is not installed.
    """
    load = ENGINES.get(kind)
    if load is None:
        raise ConfigError(f"there is no engine {kind[:64]!r}; there are {', '.join(ENGINES)}")
    return load(files, file, options)

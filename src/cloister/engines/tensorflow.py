"""TensorFlow's and Keras's models, run by OpenVINO.

They are converted when they are packed (``convert``): OpenVINO reads a SavedModel without TensorFlow, and a
Keras file needs Keras there. The worker needs neither.
"""

from __future__ import annotations

from cloister.engines import openvino
from cloister.engines.engine import EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.openvino import OpenVinoEngine
from cloister.errors import ConfigError


def open_model(files: ModelFiles, file: str, options: EngineOptions) -> OpenVinoEngine:
    """Load a converted model.

    Raises:
        ConfigError: it was not converted, or OpenVINO does not read it.
        MissingDependencyError: OpenVINO is not installed.
    """
    if not file.endswith(".xml"):
        raise ConfigError(
            f"{file[:256]!r} is not converted", hint="cloister archive --engine tensorflow converts it"
        )
    return openvino.open_model(files, file, options)

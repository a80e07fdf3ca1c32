"""``ts.torch_handler.base_handler``: the class that most TorchServe handlers derive from.

Source: pytorch/serve 0.12, ts/torch_handler/base_handler.py (names and behaviour). State dictionaries load
with ``weights_only``, so that a weight file cannot run code; a TorchScript file is code by its nature.
"""

from __future__ import annotations

import abc
import importlib
import time
from pathlib import Path
from typing import Any

from cloister.serve.torchserve.timer import timed
from cloister.serve.torchserve.util import list_classes_from_module, load_label_mapping

try:
    torch: Any = importlib.import_module("torch")
except ImportError as _error:
    raise ImportError(
        "handlers that derive from BaseHandler need PyTorch: install cloister[torch]"
    ) from _error


class BaseHandler(abc.ABC):  # noqa: B024 (TorchServe's class is abstract without abstract methods)
    """Loads the model of an archive and runs preprocess, inference and postprocess on each batch."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, str] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: Any = None
        self.map_location: str | None = None
        self.explain = False
        self.target = 0
        self.profiler_args: dict[str, Any] = {}
        self.model_yaml_config: Any = {}

    def initialize(self, context: Any) -> None:
        """Load the model: eager if the archive names a model file, else TorchScript.

        Raises:
            RuntimeError: the archive has neither.
        """
        self.context = context
        self.manifest = context.manifest
        self.model_yaml_config = context.model_yaml_config
        properties = context.system_properties
        gpu_id = properties.get("gpu_id")
        self.map_location = "cuda" if gpu_id is not None and torch.cuda.is_available() else "cpu"
        self.device = torch.device(f"cuda:{gpu_id}" if self.map_location == "cuda" else "cpu")
        model_dir = str(properties.get("model_dir"))
        described = self.manifest["model"]
        serialized, model_file = described.get("serializedFile"), described.get("modelFile")
        self.model_pt_path = str(Path(model_dir, serialized)) if serialized else None
        if model_file:
            self.model = self._load_pickled_model(model_dir, model_file, self.model_pt_path)
            self.model.to(self.device)
        elif self.model_pt_path is not None and self.model_pt_path.endswith(".pt"):
            self.model = self._load_torchscript_model(self.model_pt_path)
        else:
            raise RuntimeError("No model weights could be loaded")
        self.model.eval()
        self.mapping = load_label_mapping(str(Path(model_dir, "index_to_name.json")))
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        return torch.jit.load(model_pt_path, map_location=self.device)

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        if not Path(model_dir, model_file).is_file():
            raise RuntimeError("Missing the model.py file")
        module = importlib.import_module(model_file.split(".")[0])
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            raise ValueError(f"Expected only one class as model definition. {classes}")
        model: Any = classes[0]()
        if model_pt_path:
            state = torch.load(model_pt_path, map_location=self.device, weights_only=True)
            model.load_state_dict(state)
        return model

    @timed
    def preprocess(self, data: Any) -> Any:
        """The batch as a tensor; most handlers override this."""
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the batch, without gradients."""
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        """One answer for each request of the batch."""
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Answer one batch: preprocess, inference, postprocess."""
        start = time.perf_counter()
        self.context = context
        output = self.postprocess(self.inference(self.preprocess(data)))
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - start) * 1000, 2), None, "ms")
        return output

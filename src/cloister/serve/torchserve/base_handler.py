"""``ts.torch_handler.base_handler``: the class that most TorchServe handlers derive from.

Source: pytorch/serve 0.12, ts/torch_handler/base_handler.py (names and behaviour). State dictionaries load
with ``weights_only``, so that a weight file cannot run code; a TorchScript file is code by its nature.
"""

from __future__ import annotations

import abc
import importlib
import importlib.util
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.serve.torchserve.timer import timed
from cloister.serve.torchserve.util import (
    check_valid_pt2_backend,
    list_classes_from_module,
    load_label_mapping,
)

try:
    torch: Any = importlib.import_module("torch")
    weights: Any = importlib.import_module("cloister.serve.torchserve.weights")
except ImportError as _error:
    raise ImportError(
        "handlers that derive from BaseHandler need PyTorch: install cloister[torch]"
    ) from _error

logger = logging.getLogger(__name__)
# What handlers that were made from TorchServe's import beside the class.
PT2_AVAILABLE = PT230_AVAILABLE = PROFILER_AVAILABLE = True
XLA_AVAILABLE = IPEX_AVAILABLE = False
ONNX_AVAILABLE = importlib.util.find_spec("onnxruntime") is not None


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
        """Load the model: eager if the archive names a model file, else by the end of its file's name.

        Raises:
            RuntimeError: the archive has no model of a known kind.
        """
        self.model_yaml_config = getattr(context, "model_yaml_config", None) or {}
        self.manifest = context.manifest
        properties = context.system_properties
        self._choose_device(properties.get("gpu_id"))
        model_dir = str(properties.get("model_dir"))
        described = self.manifest["model"]
        serialized, model_file = described.get("serializedFile"), described.get("modelFile")
        self.model_pt_path = str(Path(model_dir, serialized)) if serialized else None
        self.model = self._load_model(model_dir, model_file, self.model_pt_path)
        self._compile()
        self.mapping = load_label_mapping(str(Path(model_dir, "index_to_name.json")))
        self.initialized = True

    def _choose_device(self, gpu_id: Any) -> None:
        cuda = gpu_id is not None and torch.cuda.is_available()
        self.map_location = "cuda" if cuda else "cpu"
        self.device = torch.device(f"cuda:{gpu_id}" if cuda else "cpu")
        if cuda and torch.cuda.get_device_capability(self.device) >= (8, 0):
            torch.set_float32_matmul_precision("high")  # TorchServe does so from Ampere on

    def _load_model(self, model_dir: str, model_file: str | None, path: str | None) -> Any:
        if model_file:
            model = self._load_pickled_model(model_dir, model_file, path)
            model.to(self.device)
            model.eval()
            return model
        suffix = Path(path).suffix if path is not None else ""
        if path is not None and suffix == ".pt":
            model = self._load_torchscript_model(path)
            model.eval()
            return model
        if path is not None and suffix == ".onnx":
            return self._load_onnx_model(path)
        if path is not None and suffix == ".so" and self._use_torch_export_aot_compile():
            return self._load_torch_export_aot_compile(path)
        raise RuntimeError("No model weights could be loaded")

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        model = torch.jit.load(model_pt_path, map_location=self.device)
        if self.map_location == "cpu":
            weights.share_script_weights(model, Path(model_pt_path))
        return model

    def _load_onnx_model(self, model_pt_path: str) -> Any:
        try:
            runtime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise RuntimeError(
                "an ONNX model needs the package onnxruntime: install cloister[onnx]"
            ) from error
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        if self.map_location == "cuda":
            providers.insert(0, "CUDAExecutionProvider")
        return runtime.InferenceSession(model_pt_path, providers=providers, sess_options=options)

    def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
        if self.map_location == "cuda":
            torch.cuda.set_device(self.device)
        return torch._export.aot_load(model_so_path, self.map_location)

    def _use_torch_export_aot_compile(self) -> bool:
        settings = self.model_yaml_config.get("pt2")
        export = settings.get("export") if isinstance(settings, Mapping) else None
        return isinstance(export, Mapping) and bool(export.get("aot_compile"))

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        if not Path(model_dir, model_file).is_file():
            raise RuntimeError("Missing the model.py file")
        module = importlib.import_module(model_file.split(".")[0])
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            raise ValueError(f"Expected only one class as model definition. {classes}")
        model: Any = classes[0]()
        if model_pt_path:
            weights.fill_model(model, weights.read_state(Path(model_pt_path), self.device))
        return model

    def _compile(self) -> None:
        """``torch.compile`` as the settings' ``pt2`` says; a model that cannot be compiled runs without."""
        options = _compile_options(self.model_yaml_config.get("pt2"))
        if options is None or not check_valid_pt2_backend(options.get("backend", "inductor")):
            return
        try:
            self.model = torch.compile(self.model, **options)
        except Exception as error:  # noqa: BLE001 (the compiler may raise anything)
            logger.warning("the model could not be compiled (%s), it runs without", type(error).__name__)

    @timed
    def preprocess(self, data: Any) -> Any:
        """The batch as a tensor; most handlers override this."""
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the batch, without gradients."""
        if hasattr(self.model, "get_inputs"):
            return self._run_session(data)
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        """One answer for each request of the batch."""
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Answer one batch: preprocess, inference, postprocess; or explain, or describe, as it is asked."""
        start = time.perf_counter()
        self.context = context
        if self._is_describe():
            output: Any = [self.describe_handle()]
        else:
            prepared = self.preprocess(data)
            if self._is_explain():
                output = self.explain_handle(prepared, data)
            else:
                output = self.postprocess(self.inference(prepared))
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - start) * 1000, 2), None, "ms")
        return output

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Explain the answer to the first request, by the handler's ``get_insights``."""
        inputs, target = None, 0
        row = raw_data[0]
        if isinstance(row, dict):
            inputs = row.get("data") or row.get("body")
            target = row.get("target") or 0
        get_insights = getattr(self, "get_insights", None)
        if get_insights is None:
            raise RuntimeError("this handler has no explanations: it does not define get_insights")
        return get_insights(data_preprocess, inputs, target)

    def describe_handle(self) -> Any:
        """What the handler says of itself; nothing unless overridden."""
        return None

    def get_device(self) -> Any:
        return self.device

    def _is_explain(self) -> bool:
        if self._first_header("explain") == "True":
            self.explain = True
            return True
        return False

    def _is_describe(self) -> bool:
        return bool(self._first_header("describe") == "True")

    def _first_header(self, name: str) -> Any:
        return self.context.get_request_header(0, name) if self.context else None

    def _run_session(self, data: Any) -> Any:
        (first, *_) = self.model.get_inputs()
        outputs = self.model.run(None, {first.name: data.detach().cpu().numpy()})
        return torch.from_numpy(outputs[0])


def _compile_options(settings: Any) -> dict[str, Any] | None:
    """Arguments of ``torch.compile``, or None if it is not asked for."""
    if isinstance(settings, str):
        return {"backend": settings}
    if not isinstance(settings, Mapping):
        return None
    if "compile" in settings:
        options = dict(settings["compile"] or {})
        return options if options.pop("enable", False) else None
    return None if "export" in settings else dict(settings)

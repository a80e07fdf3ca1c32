"""The ``ts.*`` modules that TorchServe's handlers import, present inside workers only.

``install`` puts a finder first on the import path, so these win over an installed ``torchserve``. A ``ts``
module that is not here fails with its name and the reason. ``torchvision.transforms`` has a stand-in for
where torchvision is not installed; it comes last on the import path, so an installed one wins.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

VERSION = "0.12.0"
"""TorchServe's version whose handlers are expected to work."""

_HERE = "cloister.serve.torchserve"
MODULES: Mapping[str, str] = {
    "ts.context": f"{_HERE}.context",
    "ts.service": f"{_HERE}.service",
    "ts.handler_utils.micro_batching": f"{_HERE}.micro_batching",
    "ts.handler_utils.text_utils": f"{_HERE}.text",
    "ts.handler_utils.timer": f"{_HERE}.timer",
    "ts.handler_utils.utils": f"{_HERE}.handler_utils",
    "ts.protocol.otf_message_handler": f"{_HERE}.handler_utils",
    "ts.metrics.caching_metric": f"{_HERE}.metrics",
    "ts.metrics.dimension": f"{_HERE}.metrics",
    "ts.metrics.metric": f"{_HERE}.metrics",
    "ts.metrics.metric_abstract": f"{_HERE}.metrics",
    "ts.metrics.metric_cache_abstract": f"{_HERE}.metrics",
    "ts.metrics.metric_cache_errors": f"{_HERE}.metrics",
    "ts.metrics.metric_cache_yaml_impl": f"{_HERE}.metrics",
    "ts.metrics.metric_type_enum": f"{_HERE}.metrics",
    "ts.metrics.metrics_store": f"{_HERE}.metrics",
    "ts.metrics.unit": f"{_HERE}.metrics",
    "ts.torch_handler.base_handler": f"{_HERE}.base_handler",
    "ts.torch_handler.contractions": f"{_HERE}.text",
    "ts.torch_handler.image_classifier": f"{_HERE}.handlers.image_classifier",
    "ts.torch_handler.image_segmenter": f"{_HERE}.handlers.image_segmenter",
    "ts.torch_handler.object_detector": f"{_HERE}.handlers.object_detector",
    "ts.torch_handler.text_classifier": f"{_HERE}.handlers.text_classifier",
    "ts.torch_handler.text_handler": f"{_HERE}.handlers.text_handler",
    "ts.torch_handler.vision_handler": f"{_HERE}.handlers.vision_handler",
    "ts.torch_handler.request_envelope.base": f"{_HERE}.envelopes.base",
    "ts.torch_handler.request_envelope.body": f"{_HERE}.envelopes.body",
    "ts.torch_handler.request_envelope.json": f"{_HERE}.envelopes.json",
    "ts.torch_handler.request_envelope.kserve": f"{_HERE}.envelopes.kserve",
    "ts.torch_handler.request_envelope.kservev2": f"{_HERE}.envelopes.kservev2",
    "ts.utils.util": f"{_HERE}.util",
}
STAND_INS: Mapping[str, str] = {
    "torchvision.transforms": f"{_HERE}.transforms",
    "torchvision.transforms.transforms": f"{_HERE}.transforms",
}


class _AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one package and all below it; loads a package as an empty one, a module as an alias of ours."""

    def __init__(self, top: str, modules: Mapping[str, str], reason: str) -> None:
        self._top = top
        self._modules = modules
        self._packages = {
            name.rsplit(".", depth)[0] for name in modules for depth in range(1, name.count(".") + 1)
        }
        self._reason = reason

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._top and not fullname.startswith(f"{self._top}."):
            return None
        if fullname not in self._packages and fullname not in self._modules:
            raise ModuleNotFoundError(f"{fullname} {self._reason}", name=fullname)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname in self._packages)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        if spec.name in self._modules:
            module = importlib.import_module(self._modules[spec.name])
            spec.loader_state = module.__spec__
            return module
        module = ModuleType(spec.name, f"Stands in for {self._top}'s package of this name.")
        module.__path__ = []
        if spec.name == self._top:
            module.__dict__["__version__"] = VERSION if self._top == "ts" else "0"
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None and isinstance(spec.loader_state, importlib.machinery.ModuleSpec):
            module.__spec__ = spec.loader_state  # an alias keeps its own identity


def install() -> None:
    """Make ``ts`` importable in this process. A second call does nothing."""
    if any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        return
    missing = "of TorchServe is not among the modules that Cloister's workers have"
    sys.meta_path.insert(0, _AliasFinder("ts", MODULES, missing))
    absent = "is not there: torchvision is not installed, and only its transforms have a stand-in"
    sys.meta_path.append(_AliasFinder("torchvision", STAND_INS, absent))

"""The ``ts.*`` modules that TorchServe's handlers import, present inside workers only.

``install`` puts a finder first on the import path, so these win over an installed ``torchserve``. A ``ts``
module that is not here fails with its name and the reason.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

VERSION = "0.12.0"
"""TorchServe's version whose handlers are expected to work."""

PACKAGES = frozenset({"ts", "ts.handler_utils", "ts.metrics", "ts.torch_handler", "ts.utils"})

MODULES = {
    "ts.context": "cloister.serve.torchserve.context",
    "ts.handler_utils.timer": "cloister.serve.torchserve.timer",
    "ts.metrics.metrics_store": "cloister.serve.torchserve.metrics",
    "ts.torch_handler.base_handler": "cloister.serve.torchserve.base_handler",
    "ts.utils.util": "cloister.serve.torchserve.util",
}


class _TorchServeFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``ts`` and all below it; loads a package as an empty one, a module as an alias of ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "ts" and not fullname.startswith("ts."):
            return None
        if fullname not in PACKAGES and fullname not in MODULES:
            raise ModuleNotFoundError(
                f"{fullname} of TorchServe is not among the modules that Cloister's workers have",
                name=fullname,
            )
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname in PACKAGES)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        if spec.name not in PACKAGES:
            module = importlib.import_module(MODULES[spec.name])
            spec.loader_state = module.__spec__
            return module
        module = ModuleType(spec.name, "Stands in for TorchServe's package of this name.")
        module.__path__ = []
        if spec.name == "ts":
            module.__dict__["__version__"] = VERSION
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None and isinstance(spec.loader_state, importlib.machinery.ModuleSpec):
            module.__spec__ = spec.loader_state  # an alias keeps its own identity


def install() -> None:
    """Make ``import ts...`` work in this process. A second call does nothing."""
    if not any(isinstance(finder, _TorchServeFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchServeFinder())

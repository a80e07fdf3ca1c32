"""An exported program (``.pt2``) of PyTorch, called by the names of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Program:
    """What ``torch.export.load`` gives, with its inputs by name."""

    def __init__(self, exported: Any) -> None:
        self.exported = exported
        self.names = tuple(str(name) for name in exported.graph_signature.user_inputs)
        positional, named = exported.call_spec.in_spec.children()
        self._positional = positional.num_children
        self._named = tuple(named.context)
        self._module = exported.module()

    def __call__(self, tensors: Mapping[str, Any]) -> Any:
        """The outputs for these inputs."""
        values = [tensors[name] for name in self.names]
        named = dict(zip(self._named, values[self._positional :], strict=True))
        return self._module(*values[: self._positional], **named)

    def state_dict(self) -> Mapping[str, Any]:
        """Its parameters and buffers."""
        found: Mapping[str, Any] = self.exported.state_dict
        return found

    def has_convolutions(self) -> bool:
        """Whether an operation of it is a convolution."""
        return any(
            "conv" in str(node.target) for node in self.exported.graph.nodes if node.op == "call_function"
        )

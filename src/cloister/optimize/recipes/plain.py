"""A PyTorch module around another, whose inputs have names and whose outputs are plain.

Modules of ``transformers`` answer with classes of their own. A program exported from one is loaded only where
that class is known, which a worker does not; and PyTorch's exporter to ONNX gives inputs by their places,
which such modules do not take.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any


def plain_module(model: Any, names: Sequence[str]) -> Any:
    """A module that takes ``names``, by place or by name, and gives what ``model`` gives.

    A mapping of any class becomes a dictionary of its tensors; anything else stays as it is.
    """
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any, **named: Any) -> Any:
            found = self.model(**dict(zip(names, values, strict=False)), **named)
            if not isinstance(found, Mapping):
                return found
            return {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    Plain.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Plain().eval()

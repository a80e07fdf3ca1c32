"""Integrated gradients: how much each input counted for an output.

Source: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks" (2017), section 5; the integral by
Gauss-Legendre quadrature from a baseline of zeros, which is what captum does by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch


def integrated_gradients(
    forward: Callable[[Any], Any], inputs: Any, target: int, *, n_steps: int = 50
) -> Any:
    """Attribution of ``forward(inputs)[:, target]`` to each value of ``inputs``, in its shape."""
    points, step_sizes = _steps(n_steps)
    total = torch.zeros_like(inputs)
    for point, size in zip(points, step_sizes, strict=True):
        total += size * _gradient(forward, inputs * point, target)
    return total * inputs


def _gradient(forward: Callable[[Any], Any], at: Any, target: int) -> Any:
    with torch.enable_grad():
        at = at.detach().requires_grad_(True)
        output = forward(at)
        (gradient,) = torch.autograd.grad(output[:, target].sum(), at)
    return gradient


def _steps(n_steps: int) -> tuple[list[float], list[float]]:
    """Points between 0 and 1, and the weight of each."""
    points, sizes = numpy.polynomial.legendre.leggauss(n_steps)
    return [(1 + float(point)) / 2 for point in points], [float(size) / 2 for size in sizes]


class IntegratedGradients:
    """``integrated_gradients`` of one model, called as captum's class of this name is."""

    def __init__(self, forward_func: Callable[[Any], Any]) -> None:
        self._forward = forward_func

    def attribute(self, inputs: Any, target: int = 0, n_steps: int = 50) -> Any:
        return integrated_gradients(self._forward, inputs, target, n_steps=n_steps)

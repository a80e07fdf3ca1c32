"""PyTorch's own forms: an exported program, also with weights in channels-last order, or compiled ahead."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cloister.engines.torch import compile_program
from cloister.errors import ConfigError, MissingDependencyError
from cloister.optimize.job import Job
from cloister.optimize.program import Program
from cloister.optimize.recipes.plain import plain_module
from cloister.optimize.samples import Samples
from cloister.optimize.source import input_names, load

FILE = "model.pt2"


def make_program(job: Job, folder: Path) -> str:
    """The model as an exported program (``torch.export``), with any number of rows."""
    if job.source.form == "pt2":
        (folder / FILE).symlink_to(job.source.place)
        return FILE
    torch = _torch()
    torch.export.save(_export(torch, job, channels_last=False), folder / FILE)
    return FILE


def make_program_channels_last(job: Job, folder: Path) -> str:
    """As ``make_program``, with the weights of convolutions in channels-last order."""
    torch = _torch()
    torch.export.save(_export(torch, job, channels_last=True), folder / FILE)
    return FILE


def make_aoti(job: Job, folder: Path) -> str:
    """The model compiled to a library by AOTInductor, in a package."""
    torch = _torch()
    if shutil.which("c++") is None and shutil.which("g++") is None:
        raise MissingDependencyError("there is no C++ compiler", hint="apt-get install g++")
    program = _export(torch, job, channels_last=False)
    compile_program(program, folder / FILE)
    return FILE


def _export(torch: Any, job: Job, *, channels_last: bool) -> Any:
    model = load(job.source)
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError("TorchScript is not exported again; it is served as it is")
    if isinstance(model, Program):
        if channels_last:
            raise ConfigError("an exported program keeps its layout; give the module instead")
        return model.exported
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    samples = Samples.load(Path(job.data))
    samples = samples.named(input_names(model, samples.names))
    model = plain_module(model, samples.names)
    example = {name: torch.from_numpy(np.repeat(a[:1], 2, axis=0)) for name, a in samples.pieces[0].items()}
    shapes = {name: _dynamic(torch, samples, name) for name in example}
    with torch.no_grad():
        return torch.export.export(model, args=(), kwargs=example, dynamic_shapes=shapes, strict=False)


def _dynamic(torch: Any, samples: Samples, name: str) -> dict[int, Any]:
    arrays = [piece[name] for piece in samples.pieces]
    tokens = arrays[0].dtype.kind in "iu"
    found = {0: torch.export.Dim.AUTO}
    for axis in range(1, arrays[0].ndim):
        if tokens or len({array.shape[axis] for array in arrays}) > 1:
            found[axis] = torch.export.Dim.AUTO
    return found


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "torch is not installed", hint="pip install 'cloister[torch]'"
        ) from error
    return torch

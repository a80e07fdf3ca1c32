"""From one form of a model to another: each form is made once, and used by all methods that need it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import ConfigError
from cloister.optimize.job import Artifact, Event, Job, Stage
from cloister.optimize.recipes import onnx, openvino, torch, trees

Make = Callable[[Job, Path], str]
"""Writes a model into a folder and returns the name of its main file."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an artifact is made."""

    make: Make
    base: str = ""
    """The artifact that it is made from; empty: from the user's model."""


RECIPES: dict[str, Recipe] = {
    "ir": Recipe(openvino.make_ir),
    "ir_int8": Recipe(openvino.make_int8, "ir"),
    "ir_int8_accuracy": Recipe(openvino.make_int8_accuracy, "ir"),
    "onnx": Recipe(onnx.make_onnx),
    "onnx_int8": Recipe(onnx.make_int8, "onnx"),
    "program": Recipe(torch.make_program),
    "program_channels_last": Recipe(torch.make_program_channels_last),
    "aoti": Recipe(torch.make_aoti),
    "trees": Recipe(trees.make_trees),
}


def convert(job: Job, enter: Callable[[Stage], None]) -> Event:
    """The task ``convert``: make one artifact."""
    enter("convert")
    recipe = RECIPES.get(job.recipe)
    if recipe is None:
        raise ConfigError(f"there is no artifact {job.recipe!r}")
    folder = Path(job.folder)
    started = time.perf_counter()
    file = recipe.make(job, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Event(artifact=Artifact(file, size, time.perf_counter() - started))

"""PyTorch: what a program takes for granted of its inputs is looked at before its code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.engines.convert import convert_model
from cloister.engines.engine import EngineOptions
from cloister.engines.files import ModelFiles
from cloister.engines.table import open_engine
from cloister.engines.torch import read_call
from cloister.errors import ConfigError, MalformedInput

torch = pytest.importorskip("torch")


class Positions(torch.nn.Module):
    """Adds a table of 16 rows, as many as there are tokens, where the mask is set; needs 4 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.ones(16, 4))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        added = (ids.float()[..., None] + self.table[: ids.shape[1]]) * mask[..., None]
        return added.sum(1) + ids[:, :4]


class Twice(torch.nn.Module):
    """Its second input is twice as long as its first."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, a], 1) + b


def exported(module: torch.nn.Module, **example: torch.Tensor) -> Any:
    """With all sizes open."""
    open_sizes = {
        name: dict.fromkeys(range(tensor.ndim), torch.export.Dim.AUTO) for name, tensor in example.items()
    }
    return torch.export.export(module.eval(), args=(), kwargs=example, dynamic_shapes=open_sizes)


def test_what_a_program_takes_for_granted_of_sizes_is_in_its_schema(tmp_path: Path) -> None:
    """Compiled code reads behind an input that is shorter than it takes it to be: the schema has to look."""
    program = exported(Positions(), ids=torch.zeros(2, 8, dtype=torch.int64), mask=torch.ones(2, 8))
    torch.export.save(program, tmp_path / "p.pt2")
    for known in (program, torch.export.load(tmp_path / "p.pt2")):
        schema = read_call(known, compiled=True).schema
        assert schema.check(tokens(1, 16, 16)) == 1
        for ids, mask in ((16, 2), (2, 16), (17, 17), (3, 3)):
            with pytest.raises(MalformedInput, match="expected ids"):
                schema.check(tokens(1, ids, mask))


def test_sizes_that_no_schema_says_are_not_compiled() -> None:
    """A program that looks at them itself is served; compiled it would not look."""
    program = exported(Twice(), a=torch.zeros(2, 5), b=torch.zeros(2, 10))
    assert read_call(program).schema.inputs[1].shape == (-1, -1)
    with pytest.raises(ConfigError, match="depend on each other"):
        read_call(program, compiled=True)


@pytest.mark.parametrize("wrong", [{"a": 5, "b": 9}, {"token": 50}])
def test_what_a_program_finds_wrong_is_its_callers_fault(wrong: dict[str, int], tmp_path: Path) -> None:
    """Sizes that do not go together, or a token that it has not: a refusal, as other engines give."""
    if "token" in wrong:
        program = exported(torch.nn.Embedding(50, 4), input=torch.zeros(2, 5, dtype=torch.int64))
        inputs = {"input": np.full((1, 3), wrong["token"])}
    else:
        program = exported(Twice(), a=torch.zeros(2, 5), b=torch.zeros(2, 10))
        inputs = {name: np.zeros((1, size), np.float32) for name, size in wrong.items()}
    torch.export.save(program, tmp_path / "p.pt2")
    engine = open_engine("torch", ModelFiles.from_folder(tmp_path), "p.pt2", EngineOptions())
    engine.schema.check(inputs)
    with pytest.raises(MalformedInput, match="could not compute with these inputs; expected"):
        engine.infer(inputs)
    engine.close()


def test_no_more_rows_are_put_together_than_a_program_takes(tmp_path: Path) -> None:
    """A bound of the first size is one of the engine's rows too."""
    rows = torch.export.Dim("rows", max=8)
    program = torch.export.export(
        torch.nn.Linear(4, 2).eval(), (torch.zeros(2, 4),), dynamic_shapes={"input": {0: rows}}
    )
    torch.export.save(program, tmp_path / "p.pt2")
    engine = open_engine("torch", ModelFiles.from_folder(tmp_path), "p.pt2", EngineOptions())
    assert engine.rows == 8
    with pytest.raises(MalformedInput, match="at most 8"):
        engine.schema.check({"input": np.zeros((9, 4), np.float32)})
    engine.close()


@pytest.mark.slow
def test_compiled_code_shows_nothing_of_the_memory_around_its_inputs(tmp_path: Path) -> None:
    """The schema that comes with a library holds what its code takes for granted."""
    program = exported(Positions(), ids=torch.zeros(2, 8, dtype=torch.int64), mask=torch.ones(2, 8))
    torch.export.save(program, tmp_path / "p.pt2")
    packed = convert_model("torch", tmp_path / "p.pt2", tmp_path, compiled=True)
    assert packed.schema is not None
    with pytest.raises(MalformedInput, match="which are one size"):
        packed.schema.check(tokens(1, 16, 2))


def tokens(rows: int, ids: int, mask: int) -> dict[str, np.ndarray]:
    return {"ids": np.zeros((rows, ids), np.int64), "mask": np.zeros((rows, mask), np.float32)}

"""Data in its usual forms becomes pieces of named arrays with their targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, ConfigError, MalformedInput
from cloister.optimize.samples import Samples, as_array, chunks, gather, read_npz

X, Y = np.arange(24, dtype=np.float32).reshape(6, 4), np.arange(6)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [(X, Y)],
        [(torch.from_numpy(X), torch.from_numpy(Y))],
        [{"input_0": X, "labels": Y}],
        [({"input_0": X}, Y)],
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        iter([[X, Y]]),
        torch.utils.data.DataLoader(list(zip(X, Y, strict=True)), batch_size=2),
    ],
    ids=["tuple", "list", "tensors", "mapping", "mapping and target", "batches", "iterator", "loader"],
)
def test_forms_of_data(data: Any) -> None:
    """Every usual form gives the same rows and targets."""
    samples = gather(data)
    assert len(samples) == 6
    rows = [row["input_0"] for row in samples.rows(10)]
    np.testing.assert_array_equal(np.concatenate(rows), X)
    np.testing.assert_array_equal(np.concatenate(samples.targets), Y)


def test_inputs_of_transformers_keep_their_names() -> None:
    """A mapping of several inputs is one batch, its labels are the targets."""
    samples = gather({"input_ids": X.astype(int), "attention_mask": np.ones_like(X), "labels": Y})
    assert samples.names == ["input_ids", "attention_mask"]
    assert samples.targets[0].tolist() == Y.tolist()


def test_inputs_take_the_names_of_the_model() -> None:
    """By name where they match, else by order; another number of inputs is refused."""
    samples = gather([(X, X + 1, Y)])
    assert samples.named(["left", "right"]).names == ["left", "right"]
    assert Samples(({"b": X, "a": X + 1},)).named(["a"]).pieces[0]["a"][0, 0] == 1
    with pytest.raises(MalformedInput, match="the model has one, two, three"):
        samples.named(["one", "two", "three"])


@pytest.mark.parametrize(
    "data",
    [[], [(X, Y[:3])], [(X, Y), X], [{"a": X}, {"b": X}], 7, [np.zeros((0, 3))], ["text"], [np.array("x")]],
    ids=["nothing", "lengths", "some targets", "names", "no batches", "no rows", "text", "strings"],
)
def test_what_is_no_data_is_refused(data: Any) -> None:
    """Batches that do not fit together are an error in words."""
    with pytest.raises(CloisterError):
        gather(data)


def test_samples_survive_their_file(tmp_path: Path) -> None:
    """What a process of its own reads is what was written."""
    samples = gather([(X[:2], Y[:2]), (X[2:], Y[2:])])
    samples.save(tmp_path / "data.npz")
    again = Samples.load(tmp_path / "data.npz")
    assert [piece["input_0"].tolist() for piece in again.pieces] == [X[:2].tolist(), X[2:].tolist()]
    assert [target.tolist() for target in again.targets] == [[0, 1], [2, 3, 4, 5]]


def test_a_users_file(tmp_path: Path) -> None:
    """Arrays by name; one of the usual names is the target; pieces are small."""
    np.savez(tmp_path / "data.npz", pixels=X, y=Y)
    samples = read_npz(tmp_path / "data.npz", batch=4)
    assert [len(piece["pixels"]) for piece in samples.pieces] == [4, 2]
    assert samples.targets[1].tolist() == [4, 5]


def test_files_that_are_no_data_are_refused(tmp_path: Path) -> None:
    """Objects, other formats, arrays of different lengths and missing files are errors in words."""
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    np.savez(tmp_path / "lengths.npz", x=X, y=Y[:2])
    np.savez(tmp_path / "targets.npz", y=Y)
    np.save(tmp_path / "one.npz.npy", X)
    (tmp_path / "text.npz").write_text("PK\x03\x04 not really")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(CloisterError):
            read_npz(path)
    with pytest.raises(ConfigError, match="absent"):
        read_npz(tmp_path / "absent.npz")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """A file of any content raises nothing but Cloister's errors."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        file.write(content)
        file.flush()
        with pytest.raises(CloisterError):
            read_npz(Path(file.name))


def test_first_rows_and_chunks() -> None:
    """The first rows keep their pieces and targets; rows can be joined again."""
    samples = gather([(X[:4], Y[:4]), (X[4:], Y[4:])]).first(5)
    assert [len(target) for target in samples.targets] == [4, 1]
    joined = list(chunks(samples.rows(5), 3))
    assert [len(each["input_0"]) for each in joined] == [3, 2]


def test_bfloat16_is_widened() -> None:
    """numpy has no bfloat16; float32 holds each of its values."""
    assert as_array(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32

"""Calibration and validation data: rows of named arrays, and what is right for them.

People have data in many forms; here it has one: pieces (batches) of named arrays with rows first, and the
targets of each piece. Names may be missing (``input_0``); they are matched to the model's by order then.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError, MalformedInput

Array = NDArray[Any]
TARGETS = ("labels", "label", "targets", "target", "y")
"""What targets are called in mappings and ``.npz`` files."""
MAX_ROWS = 100_000
_TARGET = "target"


@dataclass(frozen=True)
class Samples:
    """Data in one form. All arrays of a piece have the same number of rows."""

    pieces: tuple[Mapping[str, Array], ...]
    targets: tuple[Array, ...] = ()
    """One array for each piece, or none at all."""

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ConfigError("there is no data", hint="give at least one batch")
        names = list(self.pieces[0])
        for piece in self.pieces:
            if list(piece) != names or not names:
                raise MalformedInput("the batches of the data have different inputs")
            if {len(array) if array.ndim else -1 for array in piece.values()} != {_rows(piece)}:
                raise MalformedInput("the inputs of a batch have different numbers of rows")
            if not _rows(piece):
                raise MalformedInput("a batch of the data has no rows")
        if self.targets and [len(target) for target in self.targets] != [_rows(p) for p in self.pieces]:
            raise MalformedInput("the targets have another number of rows than the inputs")

    def __len__(self) -> int:
        """How many rows."""
        return sum(_rows(piece) for piece in self.pieces)

    @property
    def names(self) -> list[str]:
        return list(self.pieces[0])

    def rows(self, limit: int) -> list[dict[str, Array]]:
        """The first rows, each as a piece of its own."""
        found: list[dict[str, Array]] = []
        for piece in self.pieces:
            for place in range(_rows(piece)):
                if len(found) == limit:
                    return found
                found.append({name: array[place : place + 1] for name, array in piece.items()})
        return found

    def first(self, limit: int) -> Samples:
        """The first rows, in the same pieces."""
        pieces: list[Mapping[str, Array]] = []
        targets: list[Array] = []
        for place, piece in enumerate(self.pieces):
            count = min(_rows(piece), limit)
            if not count:
                break
            limit -= count
            pieces.append({name: array[:count] for name, array in piece.items()})
            if self.targets:
                targets.append(self.targets[place][:count])
        return Samples(tuple(pieces), tuple(targets))

    def named(self, names: Sequence[str]) -> Samples:
        """With the model's names: the same ones, or as many in the same order.

        Raises:
            MalformedInput: the model has other inputs.
        """
        if set(names) <= set(self.names):
            pairs = [(name, name) for name in names]
        elif len(names) == len(self.names):
            pairs = list(zip(names, self.names, strict=True))
        else:
            raise MalformedInput(
                f"the data has the inputs {', '.join(self.names)}; the model has {', '.join(names)}"
            )
        pieces = tuple({to: piece[name] for to, name in pairs} for piece in self.pieces)
        return Samples(pieces, self.targets)

    def save(self, path: Path) -> None:
        """Write to a ``.npz`` file that ``load`` reads."""
        arrays = {
            f"{place}/{name}": array
            for place, piece in enumerate(self.pieces)
            for name, array in piece.items()
        }
        arrays |= {f"{_TARGET}/{place}": target for place, target in enumerate(self.targets)}
        np.savez(path, **arrays)  # type: ignore[arg-type]  # taken for allow_pickle

    @classmethod
    def load(cls, path: Path) -> Samples:
        """What ``save`` wrote."""
        pieces: dict[int, dict[str, Array]] = {}
        targets: dict[int, Array] = {}
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                head, _, tail = key.partition("/")
                if head == _TARGET:
                    targets[int(tail)] = arrays[key]
                else:
                    pieces.setdefault(int(head), {})[tail] = arrays[key]
        return cls(tuple(pieces.values()), tuple(targets.values()))


def read_npz(path: Path, *, batch: int = 32) -> Samples:
    """A user's ``.npz`` file: one array for each input, and perhaps the targets (``y``, ``labels``, ...).

    Raises:
        ConfigError: the file is not there.
        MalformedInput: it is no such file, holds objects, or arrays of different lengths.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise MalformedInput(f"{path} holds one array; inputs need names (numpy.savez)")
            with loaded as arrays:
                found = {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or 'no numpy file'}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise MalformedInput(f"{path} is no .npz file of plain arrays") from error
    inputs, target = split_mapping(found)
    lengths = {array.shape[0] if array.ndim else -1 for array in found.values()}
    if len(lengths) != 1 or not inputs:
        raise MalformedInput(f"{path}: the arrays need the same number of rows, first")
    (rows,) = lengths
    if rows < 1:
        raise MalformedInput(f"{path} holds no rows")
    starts = range(0, rows, batch)
    pieces = tuple({name: array[at : at + batch] for name, array in inputs.items()} for at in starts)
    targets = () if target is None else tuple(target[at : at + batch] for at in starts)
    return Samples(pieces, targets)


def gather(data: Any, *, limit: int = MAX_ROWS, labelled: bool = True, inputs: int = 1) -> Samples:
    """Data in one of its usual forms: arrays, tensors, mappings, tuples, or an iterable of these.

    Args:
        data: one batch or an iterable of batches (a list, a generator, a ``DataLoader``). A batch is an
            array, a mapping of arrays, or a tuple of inputs whose last element is the target.
        labelled: whether the last element of a tuple is the target.
        inputs: a tuple of no more elements than these has no target.
        limit: after this many rows no more are taken.
    Raises:
        ConfigError: there is no data.
        MalformedInput: a batch is none of these.
    """
    if isinstance(data, Samples):
        return data.first(limit)
    single = isinstance(data, Mapping | tuple) or hasattr(data, "shape")
    batches: Iterable[Any] = (data,) if single else data
    if not isinstance(batches, Iterable):
        raise MalformedInput("data is neither arrays nor an iterable of batches")
    pieces: list[Mapping[str, Array]] = []
    targets: list[Array] = []
    rows = 0
    for batch in batches:
        named, target = _split(batch, inputs=max(1, inputs) if labelled else sys.maxsize)
        pieces.append(named)
        if target is not None:
            targets.append(target)
        rows += _rows(named)
        if rows >= limit:
            break
    if targets and len(targets) != len(pieces):
        raise MalformedInput("some batches have targets and others none")
    return Samples(tuple(pieces), tuple(targets)).first(limit)


def split_mapping(batch: Mapping[str, Any]) -> tuple[dict[str, Array], Array | None]:
    """Inputs, and the targets that are among them under one of their usual names."""
    target = next((name for name in TARGETS if name in batch), None)
    inputs = {str(name): as_array(value) for name, value in batch.items() if name != target}
    return inputs, None if target is None else as_array(batch[target])


def as_array(value: Any) -> Array:
    """An array of numbers from a numpy array, a tensor of any library, or nested lists.

    Raises:
        MalformedInput: it holds something else than numbers.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise MalformedInput("a batch has rows of different lengths") from error
    if array.dtype.kind not in "biuf":
        raise MalformedInput(f"data of type {array.dtype.name} are no numbers")
    return np.ascontiguousarray(array)


def _split(batch: Any, *, inputs: int) -> tuple[dict[str, Array], Array | None]:
    if isinstance(batch, Mapping):
        return split_mapping(batch)
    if isinstance(batch, tuple | list) and any(isinstance(part, Mapping) for part in batch):
        if len(batch) > 2:
            raise MalformedInput("a batch is a mapping, or a mapping and its target")
        named, target = split_mapping(batch[0])
        return named, as_array(batch[1]) if len(batch) == 2 else target
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    target = as_array(parts.pop()) if len(parts) > inputs else None
    if len(parts) == 1 and isinstance(parts[0], tuple | list):
        parts = list(parts[0])
    return {f"input_{place}": as_array(part) for place, part in enumerate(parts)}, target


def _rows(piece: Mapping[str, Array]) -> int:
    first = next(iter(piece.values()), None)
    return len(first) if first is not None and first.ndim else 0


def join(batches: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Several requests as one, row after row."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def chunks(rows: Sequence[Mapping[str, Array]], size: int) -> Iterator[dict[str, Array]]:
    """Rows in joined groups of at most this many."""
    for at in range(0, len(rows), size):
        yield join(rows[at : at + size])

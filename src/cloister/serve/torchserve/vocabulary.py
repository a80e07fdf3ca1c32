"""A text model's vocabulary from ``source_vocab.pt``, without torchtext and without running code from it.

Such a file was made by ``torch.save`` of a dictionary, or of an object of torchtext. A dictionary, a list of
tokens, and torchtext's ``Vocab`` are read; the last one from its pickled parts alone.
"""

from __future__ import annotations

import collections
import importlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

torch: Any = importlib.import_module("torch")
_CONTAINERS = {
    ("collections", "Counter"): collections.Counter,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
}


class Vocabulary(dict[str, int]):
    """Token to number; a token that is not in it has the number of the unknown one."""

    unknown = 0

    def __missing__(self, token: str) -> int:
        return self.unknown

    def get_stoi(self) -> dict[str, int]:
        return dict(self)

    def get_itos(self) -> list[str]:
        return sorted(self, key=self.__getitem__)


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        try:
            loaded: Any = torch.load(str(path), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError):
            loaded = _unpickle(path)
        return _to_vocabulary(loaded)
    except ValueError:
        raise
    except Exception as error:  # a broken pickle, or the ZIP around it, can raise anything
        raise ValueError("the vocabulary cannot be read") from error


class _Part:
    """Stands for any class of torchtext: keeps what was pickled of it, and does nothing."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PartsUnpickler(pickle.Unpickler):
    """Builds plain containers and ``_Part``; every other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "torchtext":
            return _Part
        found = _CONTAINERS.get((module, name))
        if found is None:
            raise ValueError(f"the vocabulary holds a {module}.{name}, which is not loaded")
        return found


def _unpickle(path: Path) -> Any:
    raw = path.read_bytes()
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            (name,) = (item for item in archive.namelist() if item.endswith("/data.pkl"))
            raw = archive.read(name)
    return _PartsUnpickler(io.BytesIO(raw)).load()


def _to_vocabulary(loaded: Any) -> Vocabulary:
    if isinstance(loaded, _Part):
        loaded = _tokens_of(loaded)
    if isinstance(loaded, list | tuple):
        loaded = {token: number for number, token in enumerate(loaded)}
    if not isinstance(loaded, dict) or not all(isinstance(number, int) for number in loaded.values()):
        raise ValueError("the vocabulary is neither token to number nor a list of tokens")
    vocabulary = Vocabulary(loaded)
    vocabulary.unknown = vocabulary.get("<unk>", 0)
    return vocabulary


def _tokens_of(part: Any) -> Any:
    """``stoi`` of torchtext up to 0.8; the list of tokens, from 0.9 on, wherever it is nested."""
    waiting, seen = [part], 0
    while waiting and seen < 10_000:
        item = waiting.pop(0)
        seen += 1
        if isinstance(item, dict):
            if isinstance(item.get("stoi"), dict):
                return dict(item["stoi"])
            if isinstance(item.get("itos"), list):
                return item["itos"]
            waiting.extend(item.values())
        elif isinstance(item, list) and item and all(isinstance(token, str) for token in item):
            if len(item) > 1:
                return item
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, _Part):
            waiting.extend([item.state, item.arguments, vars(item)])
    return None

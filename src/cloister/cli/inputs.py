"""Files for ``cloister predict``: what each is sent as, and its answer in words or JSON."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.errors import ConfigError, MalformedInput

if TYPE_CHECKING:
    from cloister.client.answer import Answer
    from cloister.client.session import Client
    from cloister.client.tensors import Array

ARRAY_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True, slots=True)
class Question:
    """Whom to ask, and how files with arrays are meant."""

    model: str
    version: str | None
    tensor: str = ""
    """Name of the input that a .npy file is; empty: the one that the model declares."""
    as_files: bool = False
    """Send files with arrays as they are, too."""

    def ask(self, client: Client, path: Path) -> tuple[Any, str]:
        """The answer to one file, for JSON and as text.

        Raises:
            ConfigError, MalformedInput: the file cannot be read, or has no form as tensors.
            CloisterError: as ``Client.predict``.
        """
        if path.suffix.lower() not in ARRAY_SUFFIXES or self.as_files:
            return _shown(client.predict(self.model, path, version=self.version))
        arrays = read_arrays(path, lambda: self.tensor or self._declared(client))
        outputs = client.infer(self.model, arrays, version=self.version)
        lines = [
            f"{name} {array.dtype} {list(array.shape)}: {_few(array)}" for name, array in outputs.items()
        ]
        text = "\n".join(lines)
        return {name: _listed(array) for name, array in outputs.items()}, text

    def _declared(self, client: Client) -> str:
        return declared_input(client.metadata(self.model, version=self.version), self.model)


def declared_input(metadata: Mapping[str, Any], model: str) -> str:
    """The name of the one input that a model declares.

    Raises:
        ConfigError: it declares none, or several.
    """
    inputs = metadata.get("inputs")
    if isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict):
        name = inputs[0].get("name")
        if isinstance(name, str) and name:
            return name
    raise ConfigError(
        f"{model} does not declare one input, so a .npy file has no name to go by",
        hint="give --tensor NAME, or an .npz file with named arrays, or --as-files",
    )


def read_arrays(path: Path, name: Callable[[], str]) -> dict[str, Array]:
    """The arrays of a .npy or .npz file by name; pickled objects are never read.

    Args:
        name: makes the name of a .npy file's array.
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            found = None if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or 'not an array file'}") from error
    except (ValueError, EOFError, KeyError, TypeError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise MalformedInput(f"{path} is not a file of plain NumPy arrays") from error
    return {name(): loaded} if found is None else found


def _shown(answer: Answer) -> tuple[Any, str]:
    try:
        value = answer.json()
    except MalformedInput:  # text, or bytes
        value = answer.text
    return value, str(value)


def _few(array: Array) -> str:
    import numpy as np

    return " ".join(np.array2string(array, threshold=32, separator=" ").split())


def _listed(array: Array) -> Any:
    if array.dtype.kind == "O":
        flat = [item.decode("utf-8", "replace") for item in array.reshape(-1).tolist()]
        return flat if array.ndim < 2 else {"shape": list(array.shape), "data": flat}
    return array.tolist()

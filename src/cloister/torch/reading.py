"""``cloister.torch.load``: a sealed checkpoint into tensors, each decrypted straight into its own storage."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError, MalformedInput, WrongModel
from cloister.seal.container import SealedHeader, read_header
from cloister.seal.reader import SealedFile, open_sealed
from cloister.seal.signing import TrustedSigners
from cloister.seal.tensors import fill_tensor, read_index
from cloister.settings import Settings
from cloister.torch.dtypes import empty_tensor, memory_of, require_torch
from cloister.torch.keys import Keys, PathLike, open_keys, pick_trusted, settings_of_environment
from cloister.torch.structure import Rebuilt, parse
from cloister.torch.writing import FORMAT_VERSION, METADATA

if TYPE_CHECKING:
    import torch


class _Ours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    structure: Any
    views: dict[str, str]


def load(
    path: PathLike,
    *,
    model_id: str | None = None,
    keys: Keys | None = None,
    trusted: TrustedSigners | PathLike | None = None,
    device: torch.device | str | None = None,
    settings: Settings | None = None,
) -> Any:
    """The checkpoint in a container that ``save`` wrote; a dict of tensors for any other sealed safetensors.

    1. The container's signer is trusted, and its signature covers model id, key and length.
    2. It is of the model that was asked for.
    3. The key is asked for, at the cache or broker, in exactly the version that the header names.
    4. Each tensor is decrypted into its own storage; every byte is authenticated before it is believed.

    Args:
        path: of the container.
        model_id: the model that the caller means; None takes any that a trusted signer has sealed.
        keys: a source of keys; by default the cache or broker in the setting ``torch.broker``.
        trusted: signers to believe, or their file; by default the setting ``torch.trusted_signers``.
        device: where the tensors go, one after the other; main memory by default.
        settings: instead of the environment's.
    Raises:
        WrongModel: it is of another model.
        UntrustedRoot, BadSignature, BadCiphertext, MalformedInput: it is not genuine, or another key's.
        KeyUnavailable, TransportError: the key was refused, or nobody could be asked.
        ConfigError: a setting is missing, or the file cannot be read.
        MissingDependencyError: PyTorch is not installed.
    """
    require_torch()
    settings = settings or settings_of_environment()
    container = Path(os.fspath(path))
    believed = pick_trusted(trusted, settings)
    # 1 and 2
    header = _read_header(container, believed)
    _check(header, model_id, container)
    # 3
    with contextlib.ExitStack() as stack:
        source = keys if keys is not None else stack.enter_context(open_keys(settings))
        key = SecretKey(source.get_resource(f"{header.key}?version={header.key_version}"))
    # 4
    with open_sealed(container, key=key, trusted=believed) as sealed:
        if sealed.header != header:
            raise WrongModel(f"{container} was replaced while its key was fetched")
        return _read(sealed, device)


def _read_header(container: Path, trusted: TrustedSigners) -> SealedHeader:
    try:
        with container.open("rb") as file:
            return read_header(file, trusted).header
    except OSError as error:
        raise ConfigError(f"cannot read container {container}: {error.strerror}") from error


def _check(header: SealedHeader, model_id: str | None, container: Path) -> None:
    if model_id is not None and header.name != model_id:
        raise WrongModel(
            f"{container.name} is of model {header.name!r}, and {model_id[:128]!r} was asked for"
        )
    if header.kind != "safetensors":
        raise MalformedInput(f"{container.name} holds a {header.kind}, not tensors")


def _read(sealed: SealedFile, device: torch.device | str | None) -> Any:
    index = read_index(sealed)
    ours = _ours(index.metadata)
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in index.tensors:
        tensor = empty_tensor(entry.dtype, entry.shape, ours.views.get(name) if ours else None, name)
        fill_tensor(sealed, index.data_offset + entry.data_offsets[0], memory_of(tensor), name)
        tensors[name] = tensor if device is None else tensor.to(device)
    return tensors if ours is None else Rebuilt(ours.structure, tensors).value


def _ours(metadata: dict[str, str]) -> _Ours | None:
    if METADATA not in metadata:
        return None
    try:
        ours = msgspec.convert(parse(metadata[METADATA]), _Ours)
    except msgspec.ValidationError as error:
        raise MalformedInput(f"checkpoint: {error}") from error
    if ours.version != FORMAT_VERSION:
        raise MalformedInput(f"checkpoint version: expected {FORMAT_VERSION}, found {ours.version}")
    return ours

"""``cloister.torch.save``: a checkpoint into a sealed container, tensor by tensor."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError, MalformedInput
from cloister.kbs.owner import KeyKeeper
from cloister.seal.container import SealedHeader
from cloister.seal.signing import SigningKey
from cloister.seal.tensors import MAX_HEADER_BYTES
from cloister.seal.writer import seal_parts
from cloister.settings import Settings
from cloister.torch.dtypes import VIEWED, dtype_name, memory_of, stored_as
from cloister.torch.keys import PathLike, open_admin, pick_signer, settings_of_environment
from cloister.torch.structure import RESERVED, Flattened, render

if TYPE_CHECKING:
    import torch
    from _typeshed import ReadableBuffer

METADATA = "cloister.torch"
"""Name of our entry in the safetensors metadata: ``{"version": 1, "structure", "views"}``."""
FORMAT_VERSION = 1
ALIGNMENT_BYTES = 64


def save(
    obj: Any,
    path: PathLike,
    key: str,
    *,
    model_id: str | None = None,
    version: str = "1",
    sequence: int = 1,
    signer: SigningKey | PathLike | None = None,
    registry: KeyKeeper | None = None,
    dek: SecretKey | None = None,
    key_version: int = 1,
    keep_old: bool = True,
    settings: Settings | None = None,
) -> SealedHeader:
    """Seal a checkpoint: tensors, and lists, tuples, dicts, numbers and text around them.

    The container is written whole or not at all. Model id, names, shapes, types and everything else is
    authenticated; whoever has the key and changes nothing gets exactly ``obj`` back.

    Args:
        obj: for example ``model.state_dict()``, or ``{"model": model.state_dict(), "epoch": 3}``.
        path: of the container.
        key: ``kbs:///repository/type/tag``, where a key broker has, or will have, the data key.
        model_id: what ``load`` is asked for; by default the file's name without its suffix.
        version: of the model.
        sequence: grows with every release; a model store refuses to go back.
        signer: the owner's key, or its file; by default the setting ``torch.signer``.
        registry: where a new data key is registered; by default the broker in ``torch.broker``, with the
            token in ``torch.admin_token``.
        dek: use this data key, which the broker has already as ``key_version``, and register none.
        keep_old: whether the broker still releases the keys of what was saved under ``key`` before. False
            for a release that replaces the older ones: nobody can then roll back to them.
        settings: instead of the environment's.
    Returns:
        The container's header.
    Raises:
        MalformedInput: something that only pickle could save, or a name that is none.
        ConfigError: a setting is missing, or a file cannot be read or written.
        KeyUnavailable, TransportError: the broker did not take the key.
        MissingDependencyError: PyTorch is not installed.
    """
    settings = settings or settings_of_environment()
    target = Path(os.fspath(path))
    flat = Flattened(obj)
    head, tensors = _layout(flat)
    signing_key = pick_signer(signer, settings)
    # Registered before it is used: a container whose key is nowhere would be lost.
    with contextlib.ExitStack() as stack:
        place: KeyKeeper | None = None
        if dek is None:
            place = registry if registry is not None else stack.enter_context(open_admin(settings))
            dek = SecretKey.generate()
            key_version = place.put_version(key, dek.raw)
        elif registry is not None:
            raise ConfigError("give either dek= or registry=")
        header = seal_parts(
            _parts(head, tensors),
            len(head) + sum(tensor.nbytes for tensor in tensors),
            target,
            key=dek,
            signer=signing_key,
            name=target.name.split(".")[0] if model_id is None else model_id,
            version=version,
            sequence=sequence,
            kind="safetensors",
            key_uri=key,
            key_version=key_version,
        )
        if place is not None and not keep_old:
            place.set_minimum(key, key_version)
    return header


def _layout(flat: Flattened) -> tuple[bytes, list[torch.Tensor]]:
    """The safetensors header, and the tensors in the order of their data: the widest types first."""
    order = sorted(flat.tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    views = {name: dtype_name(tensor.dtype) for name, tensor in order if dtype_name(tensor.dtype) in VIEWED}
    ours = render({"version": FORMAT_VERSION, "structure": flat.structure, "views": views})
    header: dict[str, Any] = {RESERVED: {"format": "pt", METADATA: ours}}
    begin = 0
    for name, tensor in order:
        stored, shape = stored_as(tensor, f"tensor {name[:80]!r}")
        end = begin + tensor.nbytes
        header[name] = {"dtype": stored, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    document = json.dumps(header, separators=(",", ":")).encode("ascii")
    document += b" " * (-(8 + len(document)) % ALIGNMENT_BYTES)
    if len(document) > MAX_HEADER_BYTES:
        raise MalformedInput(
            f"names and structure take {len(document)} bytes, at most {MAX_HEADER_BYTES} may be"
        )
    return struct.pack("<Q", len(document)) + document, [tensor for _, tensor in order]


def _parts(head: bytes, tensors: list[torch.Tensor]) -> Iterator[ReadableBuffer]:
    yield head
    for tensor in tensors:
        # At most one tensor is copied at a time, and only one that does not lie in main memory as it is.
        whole = tensor.resolve_conj().resolve_neg().cpu().contiguous()
        yield memory_of(whole)

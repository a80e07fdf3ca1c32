"""Load weights so that the workers of one model share them: mapped from the model's folder, not copied.

A mapping is private: a worker that writes to its weights gets pages of its own, and no other sees it.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

torch: Any = importlib.import_module("torch")

SHARE_FROM_BYTES = 1 << 16
"""Smaller tensors are not worth a mapping of their own."""


def read_state(path: Path, device: Any) -> Mapping[str, Any]:
    """The state dictionary in a file of ``torch.save`` or safetensors; on a CPU it is mapped.

    Never runs code from the file.
    """
    if path.suffix == ".safetensors":
        load_file = importlib.import_module("safetensors.torch").load_file
        loaded: Mapping[str, Any] = load_file(str(path), device=str(device))
        return loaded
    mapped = zipfile.is_zipfile(path)  # only torch.save's format since 1.6 can be
    state: Any = torch.load(str(path), map_location=device, weights_only=True, mmap=mapped)
    if not isinstance(state, Mapping):
        raise TypeError(f"{path.name} holds a {type(state).__name__}, expected a state dictionary")
    return state


def fill_model(model: Any, state: Mapping[str, Any]) -> None:
    """``load_state_dict`` without a copy where the model's tensors have the state's types; else with one."""
    own = model.state_dict()
    alike = all(
        isinstance(value, torch.Tensor) and name in own and own[name].dtype == value.dtype
        for name, value in state.items()
    )
    needs_gradients = {name: item.requires_grad for name, item in model.named_parameters()}
    model.load_state_dict(state, assign=alike)
    if alike:
        for name, item in model.named_parameters():
            item.requires_grad_(needs_gradients.get(name, item.requires_grad))


def share_script_weights(model: Any, path: Path) -> int:
    """Put the weights of a TorchScript module back onto its file; returns how many bytes are shared then.

    ``torch.jit.load`` has no mapping of its own, so each worker would hold a copy. Its file is a ZIP of
    stored members, one for each storage: where one has the bytes of a tensor, the tensor is pointed at it.
    """
    candidates = _stored_members(path)
    if not candidates:
        return 0
    mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    shared = 0
    tensors = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        for tensor in tensors:
            size = tensor.untyped_storage().nbytes() if tensor.device.type == "cpu" else 0
            if size < SHARE_FROM_BYTES or not tensor.is_contiguous() or tensor.storage_offset():
                continue
            for offset in candidates.get(size, ()):
                twin = _tensor_at(mapped, offset, tensor)
                if twin is not None and torch.equal(_bytes(twin), _bytes(tensor)):
                    tensor.set_(twin.untyped_storage(), twin.storage_offset(), tensor.size(), tensor.stride())
                    shared += size
                    break
    return shared


def _stored_members(path: Path) -> dict[int, list[int]]:
    """Size of a member to the offsets of those that have it."""
    found: dict[int, list[int]] = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for offset, size in _extents(file, archive):
                found.setdefault(size, []).append(offset)
    except (OSError, zipfile.BadZipFile):
        return {}
    return found


def _extents(file: io.BufferedReader, archive: zipfile.ZipFile) -> Iterator[tuple[int, int]]:
    for info in archive.infolist():
        if info.compress_type == zipfile.ZIP_STORED and info.file_size >= SHARE_FROM_BYTES:
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
            skipped = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            yield info.header_offset + 30 + skipped, info.file_size


def _tensor_at(mapped: Any, offset: int, like: Any) -> Any:
    width = like.element_size()
    if offset % width:
        return None
    return torch.empty(0, dtype=like.dtype).set_(mapped, offset // width, like.size(), like.stride())


def _bytes(tensor: Any) -> Any:
    return tensor.detach().reshape(-1).view(torch.uint8)

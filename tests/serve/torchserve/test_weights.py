"""Weights are mapped from their file, so that workers share them, and stay each worker's own to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

from cloister.serve.torchserve.weights import fill_model, read_state, share_script_weights  # noqa: E402

WIDTH = 512


def is_mapped(tensor: Any, path: Path) -> bool:
    """Whether a tensor lies in a mapping of this file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        columns = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in columns[0].split("-"))
        if start <= address < end:
            return len(columns) == 6 and columns[5] == str(path)
    return False


@pytest.fixture
def model() -> Any:
    """A layer of a megabyte."""
    return torch.nn.Linear(WIDTH, WIDTH)


@pytest.mark.parametrize("name", ["state.pt", "state.safetensors"])
def test_state_is_mapped_and_assigned(tmp_path: Path, model: Any, name: str) -> None:
    """A model filled from a file uses the file's own pages, and writing to them does not reach the file."""
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(model.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), str(path))
    before = path.read_bytes()
    other = torch.nn.Linear(WIDTH, WIDTH)
    other.bias.requires_grad_(False)
    fill_model(other, read_state(path, torch.device("cpu")))
    assert torch.equal(other.weight, model.weight)
    assert is_mapped(other.weight, path)
    assert (other.weight.requires_grad, other.bias.requires_grad) == (True, False)
    with torch.no_grad():
        other.weight.zero_()
    assert path.read_bytes() == before


def test_other_types_are_converted(tmp_path: Path, model: Any) -> None:
    """Half-precision weights in a model of single precision are copied into it, as without a mapping."""
    torch.save({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "half.pt")
    other = torch.nn.Linear(WIDTH, WIDTH)
    fill_model(other, read_state(tmp_path / "half.pt", torch.device("cpu")))
    assert other.weight.dtype == torch.float32
    assert torch.equal(other.weight, model.weight.half().float())


def test_missing_and_unexpected_names(tmp_path: Path, model: Any) -> None:
    """A state that does not fit the model is refused."""
    torch.save({"weight": model.weight}, tmp_path / "part.pt")
    with pytest.raises(RuntimeError, match="bias"):
        fill_model(torch.nn.Linear(WIDTH, WIDTH), read_state(tmp_path / "part.pt", torch.device("cpu")))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(TypeError, match="state dictionary"):
        read_state(tmp_path / "list.pt", torch.device("cpu"))


def test_script_weights_go_back_to_the_file(tmp_path: Path, model: Any) -> None:
    """A TorchScript model's weights are put onto its file's pages, and it answers as before."""
    path = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Sequential(model, torch.nn.ReLU())).save(str(path))
    loaded = torch.jit.load(str(path))
    given = torch.randn(3, WIDTH)
    with torch.inference_mode():
        before = loaded(given)
        assert share_script_weights(loaded, path) == WIDTH * WIDTH * 4
        assert torch.equal(loaded(given), before)
    (weight, _bias) = loaded.parameters()
    assert is_mapped(weight, path)


def test_script_weights_that_are_elsewhere(tmp_path: Path, model: Any) -> None:
    """Weights that are not in the file, and a file that is no archive, are left as they are."""
    path = tmp_path / "script.pt"
    loaded = torch.jit.script(model)
    loaded.save(str(path))
    with torch.no_grad():
        loaded.weight.add_(1)
    assert share_script_weights(loaded, path) == 0
    path.write_bytes(b"no archive")
    assert share_script_weights(loaded, path) == 0

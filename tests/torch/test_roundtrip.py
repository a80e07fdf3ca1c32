"""Whatever a checkpoint usually holds comes back equal, and what only pickle could save is refused."""

from __future__ import annotations

import collections
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cloister.torch
from cloister.errors import MalformedInput
from cloister.torch.dtypes import NATIVE, VIEWED
from cloister.torch.structure import Flattened, Rebuilt, parse, render
from tests.torch.conftest import SIGNER, TRUSTED, URI, MemoryBroker

Through = Callable[[Any], Any]
torch.manual_seed(1)


def small_net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(4, 2))


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def test_a_state_dict(through: Through) -> None:
    """A model loaded from it computes the same; the type and the version notes of the dict are kept."""
    net, other = small_net(), small_net()
    state = net.state_dict()
    loaded = through(state)
    assert type(loaded) is type(state)
    assert loaded._metadata == state._metadata
    assert list(loaded) == list(state)
    other.load_state_dict(loaded)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_training_checkpoint(through: Through) -> None:
    """Model, optimizer with its steps, and plain values: training goes on from where it was."""
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net[2](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "history": [0.5, math.inf, {"accuracy": 0.9}],
        "sizes": (torch.Size([2, 3]), torch.float16, torch.device("cpu")),
        "note": "größer \u2028 \U0001f600",
        "raw": b"\0\xff",
        7: None,
        True: 2**70,
    }
    loaded = through(checkpoint)
    assert loaded.keys() == checkpoint.keys()
    assert loaded["history"] == checkpoint["history"]
    assert loaded["sizes"] == checkpoint["sizes"]
    assert type(loaded["sizes"][0]) is torch.Size
    for name in ("epoch", "note", "raw", 7, True):
        assert loaded[name] == checkpoint[name]
    fresh = torch.optim.Adam(small_net().parameters(), lr=1)
    fresh.load_state_dict(loaded["optimizer"])
    assert fresh.param_groups[0]["lr"] == 1e-3
    assert fresh.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


@pytest.mark.parametrize("name", [*NATIVE, *VIEWED])
def test_every_type_bit_by_bit(through: Through, name: str) -> None:
    """Any bits of any type come back: NaN payloads, negative zeros, 8-bit floats, complex numbers."""
    dtype = getattr(torch, name)
    if name == "bool":
        tensor = torch.tensor([[True, False, True]])
    else:
        raw = torch.randint(0, 256, (3, 5, 2 * torch.empty(0, dtype=dtype).element_size()), dtype=torch.uint8)
        tensor = raw.view(dtype)
    loaded = through({"t": tensor})["t"]
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert bits(loaded) == bits(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.empty(0),
        torch.empty((0, 4), dtype=torch.bfloat16),
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(10)[::3],
        torch.ones(1).expand(5, 3),
        torch.view_as_complex(torch.randn(4, 2)).conj(),
        torch._neg_view(torch.randn(3)),
        torch.randn(1_000_003),
    ],
    ids=range(9),
)
def test_every_layout(through: Through, tensor: torch.Tensor) -> None:
    """Scalars, empty, transposed, strided, expanded, conjugated, negated and long ones keep their values."""
    loaded = through(tensor)
    assert torch.equal(loaded, tensor)
    assert loaded.is_contiguous()


def test_tied_weights_stay_tied(through: Through) -> None:
    """One tensor under two names is one tensor afterwards, and is stored once."""
    weight = torch.randn(4, 4)
    loaded = through({"encoder": weight, "decoder": weight, "same values": weight.clone()})
    assert loaded["encoder"] is loaded["decoder"]
    assert loaded["encoder"].data_ptr() != loaded["same values"].data_ptr()


def test_parameters(through: Through) -> None:
    """Parameters come back as such, with their wish for gradients; so do plain tensors that have one."""
    loaded = through(
        {
            "p": torch.nn.Parameter(torch.ones(2)),
            "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
            "leaf": torch.ones(2, requires_grad=True),
        }
    )
    assert isinstance(loaded["p"], torch.nn.Parameter)
    flags = [loaded[name].requires_grad for name in ("p", "frozen", "leaf")]
    assert flags == [True, False, True]


def test_names_that_would_clash(through: Through) -> None:
    """Nested and dotted names, and the one that safetensors keeps for itself, do not clash."""
    checkpoint = {
        "a.b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
        "__metadata__": torch.tensor(3),
        "": torch.tensor(4),
    }
    loaded = through(checkpoint)
    assert [loaded["a.b"].item(), loaded["a"]["b"].item()] == [1, 2]
    assert [loaded["__metadata__"].item(), loaded[""].item()] == [3, 4]


def test_storages_are_their_own(through: Through) -> None:
    """Each tensor has exactly its own memory, aligned as PyTorch aligns it."""
    loaded = through({str(n): torch.randn(n) for n in (1, 7, 5000)})
    for tensor in loaded.values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.data_ptr() % 64 == 0


class Custom:
    """Something that pickle would save by running code."""


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (["\ud83d\ude00"], "not Unicode"),
        ({"\udc00": 1}, "not Unicode"),
        ({"a": [Custom()]}, r"checkpoint\['a'\]\['0'\] is a .*Custom"),
        ({"a": {1, 2}}, "builtins.set"),
        (collections.defaultdict(list), "defaultdict"),
        ({(1, 2): torch.ones(1)}, "a key that is a tuple"),
        ({math.nan: 1}, "a key that is a float"),
        ({"a": torch.ones(2).to_sparse()}, "sparse"),
        ({"a": torch.ones(2, device="meta")}, "meta device"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, "quantized"),
        ({"a": torch.ones(2).as_subclass(type("Sub", (torch.Tensor,), {}))}, "plain tensor"),
        (small_net(), "Sequential"),
        (torch.ones(2).numpy(), "ndarray"),
        (lambda: None, "function"),
    ],
    ids=range(14),
)
def test_what_only_pickle_could_save(through: Through, checkpoint: Any, message: str) -> None:
    """Anything else is refused with its place and type, and nothing is written."""
    with pytest.raises(MalformedInput, match=message):
        through(checkpoint)


def test_a_checkpoint_in_itself(through: Through) -> None:
    """A list that contains itself ends in an error, not in the interpreter's."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(MalformedInput, match="contains itself"):
        through(endless)


def test_safetensors_readers_can_read_it(tmp_path: Path, keys: MemoryBroker) -> None:
    """What is sealed is an ordinary safetensors file, with the tensors under their own names."""
    from safetensors.torch import load as load_safetensors

    from cloister.crypto.keys import SecretKey
    from cloister.seal import open_sealed

    state = small_net().state_dict()
    cloister.torch.save(state, tmp_path / "net.sealed", URI, signer=SIGNER, registry=keys)
    key = SecretKey(keys.get_resource(f"{URI}?version=1"))
    with open_sealed(tmp_path / "net.sealed", key=key, trusted=TRUSTED) as sealed:
        plain = load_safetensors(sealed.readall())
    assert plain.keys() == state.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, state[name])


def test_other_safetensors_can_be_loaded(tmp_path: Path, keys: MemoryBroker) -> None:
    """A safetensors file that somebody else wrote, sealed as a file, loads as a dict of tensors."""
    from safetensors.torch import save_file

    from cloister.crypto.keys import SecretKey
    from cloister.seal import seal_file

    weights = {"w": torch.randn(3, 4).to(torch.bfloat16), "f8": torch.randn(4).to(torch.float8_e4m3fn)}
    save_file(weights, tmp_path / "plain.safetensors")
    key = SecretKey.generate()
    keys.put_version(URI, key.raw)
    seal_file(
        tmp_path / "plain.safetensors",
        tmp_path / "net.sealed",
        key=key,
        signer=SIGNER,
        name="net",
        version="1",
        sequence=1,
        kind="safetensors",
        key_uri=URI,
    )
    loaded = cloister.torch.load(tmp_path / "net.sealed", keys=keys, trusted=TRUSTED)
    assert bits(loaded["w"]) == bits(weights["w"])
    assert bits(loaded["f8"]) == bits(weights["f8"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    ),
)


@given(VALUES)
def test_any_plain_values(value: Any) -> None:
    """Plain values of any shape come back equal and of the same types, through real JSON text."""
    back = Rebuilt(parse(render(Flattened(value).structure)), {}).value
    assert back == value
    assert repr(back) == repr(value)


TAGS = ["dict", "ordered", "metadata", "tuple", "size", "float", "bytes", "dtype", "device", "tensor", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(TAGS),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_any_structure_raises_only_declared_errors(structure: Any) -> None:
    """Whatever JSON a structure is: values, or MalformedInput."""
    try:
        Rebuilt(structure, {"t": torch.ones(1)})
    except MalformedInput:
        return
    raise AssertionError("tensor t was not named")


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "[" * 100_000])
def test_text_that_is_no_structure(text: str) -> None:
    """What is not JSON is MalformedInput."""
    with pytest.raises(MalformedInput):
        parse(text)


def test_device(tmp_path: Path, keys: MemoryBroker) -> None:
    """Tensors go to the device that was asked for."""
    cloister.torch.save({"a": torch.ones(2)}, tmp_path / "net", URI, signer=SIGNER, registry=keys)
    loaded = cloister.torch.load(tmp_path / "net", keys=keys, trusted=TRUSTED, device="meta")
    assert loaded["a"].device.type == "meta"


def test_no_pickle_is_written(tmp_path: Path, keys: MemoryBroker) -> None:
    """A torch.save file and ours have nothing in common: torch.load does not read ours."""
    path = tmp_path / "net"
    cloister.torch.save({"a": torch.ones(2)}, path, URI, signer=SIGNER, registry=keys)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(path.read_bytes()))

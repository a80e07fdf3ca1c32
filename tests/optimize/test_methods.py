"""Which methods are tried on which model."""

from __future__ import annotations

import pytest

from cloister.errors import ConfigError
from cloister.optimize.methods import ALIASES, METHODS, choose_methods, find_method
from cloister.optimize.recipes import RECIPES


def test_every_artifact_has_a_recipe() -> None:
    """No method needs what nobody can make, and what is repaired comes before."""
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert {method.artifact for method in METHODS} == set(RECIPES) - {"none"}
    for method in METHODS:
        if method.repairs:
            assert names.index(method.repairs) < names.index(method.name)


def test_nano_names_lead_to_methods() -> None:
    """Each of BigDL Nano's names has a method that took its place."""
    for name, ours in ALIASES.items():
        assert find_method(name) == ours
    with pytest.raises(ConfigError, match="no method"):
        find_method("openvino_fp17")


def test_modes() -> None:
    """The default leaves out what takes long; naming a method overrides the mode; excludes win."""
    usual = {method.name for method in choose_methods("torch")}
    everything = {method.name for method in choose_methods("torch", search_mode="all")}
    assert usual < everything
    assert "inductor_fp32" in everything - usual
    named = choose_methods("torch", includes=["inductor_fp32", "jit_bf16"], excludes=["jit_bf16"])
    assert [method.name for method in named] == ["inductor_fp32"]


def test_families_and_layouts() -> None:
    """Trees are not quantized, and nets without convolutions have no layout to choose."""
    assert {method.kind for method in choose_methods("trees", search_mode="all")} == {"trees", "onnxruntime"}
    assert not any("int8" in method.name for method in choose_methods("trees", search_mode="all"))
    plain = choose_methods("torch", search_mode="all", convolutions=False)
    assert not any("channels_last" in method.name for method in plain)

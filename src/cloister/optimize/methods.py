"""The methods that are tried, in the order in which they promise most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cloister.errors import ConfigError
from cloister.optimize.job import Family

ORIGINAL = "original"
DEFAULT, ALL = "default", "all"
_ANY: tuple[Family, ...] = ("torch", "onnx", "ir", "tensorflow")


@dataclass(frozen=True, slots=True)
class Method:
    """An engine, a precision and a form of the model."""

    name: str
    kind: str
    """Key of ``engines.table.ENGINES``."""
    artifact: str
    """Key of ``recipes.RECIPES``."""
    precision: str = "fp32"
    compiled: bool = False
    families: tuple[Family, ...] = _ANY
    extensive: bool = False
    """Left to ``search_mode="all"``: it takes long, and is rarely the best."""
    convolutions: bool = False
    """For models with convolutions only."""
    repairs: str = ""
    """Tried only if this method worked and lost too much accuracy."""


METHODS: tuple[Method, ...] = (
    Method("trees", "trees", "trees", families=("trees",)),
    Method("openvino_fp32", "openvino", "ir"),
    Method("openvino_int8", "openvino", "ir_int8", "int8"),
    Method("openvino_bf16", "openvino", "ir", "bf16"),
    Method("openvino_int8_bf16", "openvino", "ir_int8", "bf16"),
    Method("openvino_int8_accuracy", "openvino", "ir_int8_accuracy", "int8", repairs="openvino_int8"),
    Method("torch_bf16", "torch", "program", "bf16", families=("torch",)),
    Method("onnxruntime_fp32", "onnxruntime", "onnx", families=("torch", "onnx", "trees")),
    Method("onnxruntime_int8", "onnxruntime", "onnx_int8", "int8", families=("torch", "onnx")),
    Method("torch_fp32", "torch", "program", families=("torch",), extensive=True),
    Method(
        "torch_bf16_channels_last", "torch", "program_channels_last", "bf16", families=("torch",),
        extensive=True, convolutions=True,
    ),
    Method(
        "torch_fp32_channels_last", "torch", "program_channels_last", families=("torch",),
        extensive=True, convolutions=True,
    ),
    Method("inductor_bf16", "torch", "program", "bf16", compiled=True, families=("torch",), extensive=True),
    Method("inductor_fp32", "torch", "program", compiled=True, families=("torch",), extensive=True),
    Method("aoti_fp32", "torch", "aoti", families=("torch",), extensive=True),
)  # fmt: skip

ALIASES = {
    "bf16": "torch_bf16",
    "bf16_channels_last": "torch_bf16_channels_last",
    "fp32_channels_last": "torch_fp32_channels_last",
    "fp32_ipex": "torch_fp32",
    "bf16_ipex": "torch_bf16",
    "fp32_ipex_channels_last": "torch_fp32_channels_last",
    "bf16_ipex_channels_last": "torch_bf16_channels_last",
    "jit_fp32": "inductor_fp32",
    "jit_bf16": "inductor_bf16",
    "jit_fp32_ipex": "inductor_fp32",
    "jit_bf16_ipex": "inductor_bf16",
    "static_int8": "openvino_int8",
    "onnxruntime_int8_qlinear": "onnxruntime_int8",
}
"""BigDL Nano's names, and what has taken the place of each."""


def find_method(name: str) -> str:
    """A method's name, from that or BigDL Nano's.

    Raises:
        ConfigError: there is no such method.
    """
    known = ALIASES.get(name, name)
    if known != ORIGINAL and known not in {method.name for method in METHODS}:
        names = ", ".join([ORIGINAL, *(method.name for method in METHODS)])
        raise ConfigError(f"there is no method {name[:60]!r}", hint=f"there are {names}")
    return known


def choose_methods(
    family: Family,
    *,
    search_mode: str = DEFAULT,
    includes: Iterable[str] = (),
    excludes: Iterable[str] = (),
    convolutions: bool = True,
) -> list[Method]:
    """The methods to try on a model of this family, without the original.

    Args:
        includes: only these, whatever the mode. Excludes win.
    Raises:
        ConfigError: there is no such method or mode.
    """
    if search_mode not in (DEFAULT, ALL, "grid"):
        raise ConfigError(f"search mode {search_mode!r} is none of default, all, grid")
    wanted = {find_method(name) for name in includes}
    unwanted = {find_method(name) for name in excludes}
    return [
        method
        for method in METHODS
        if family in method.families
        and method.name not in unwanted
        and (method.name in wanted if wanted else search_mode != DEFAULT or not method.extensive)
        and (convolutions or not method.convolutions)
    ]

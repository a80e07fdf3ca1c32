"""The machine and the versions that figures were measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("cloister", "torch", "openvino", "nncf", "onnxruntime", "xgboost-cpu", "lightgbm", "treelite")
_FEATURES = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe_machine() -> dict[str, str]:
    """Processor, its instructions that matter, cores and versions of packages."""
    found = {"cores": str(len(os.sched_getaffinity(0))), "python": platform.python_version()}
    for line in _processor_lines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "model name":
            found["processor"] = value
        elif name == "flags":
            found["instructions"] = " ".join(word for word in _FEATURES if word in value.split())
            break
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []

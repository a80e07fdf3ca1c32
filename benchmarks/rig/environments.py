"""Each peer's own environment, made on first use from public packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
TINY = {
    "mosec": ["mosec==0.9.8", "numpy"],
    "torchserve": ["torchserve==0.12.0", "torch-model-archiver", TORCH, "numpy", "setuptools<81", "pyyaml"],
    "litserve": ["litserve==0.2.19", "numpy"],
    "mlserver": ["mlserver==1.7.1", "uvloop==0.21.0", "numpy"],
    "fastapi": ["fastapi", "uvicorn[standard]", "numpy"],
}
"""What each peer needs for the tiny model."""
HEAVY = [TORCH, "pillow", "transformers==5.23.0", "openvino==2026.4.1"]
"""What ResNet-50 and BERT-Large need on top."""


def make_environment(name: str, folder: Path, *, heavy: bool = False) -> Path:
    """The interpreter of a peer's environment."""
    target = folder / name
    python = target / "bin" / "python"
    if not (target / "ready").exists():
        print(f"installing {name} into {target}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(target)], check=True)
        _install(python, TINY[name], target / "ready")
    if heavy and not (target / "ready-heavy").exists():
        print(f"installing PyTorch and OpenVINO into {target}", file=sys.stderr, flush=True)
        _install(python, [*TINY[name], *HEAVY], target / "ready-heavy")
    return python


def _install(python: Path, packages: list[str], done: Path) -> None:
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *packages], check=True)
    done.touch()

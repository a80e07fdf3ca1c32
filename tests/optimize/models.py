"""Models and data that the tests name as ``tests.optimize.models:NAME``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


class TwoInputs(nn.Module):
    """A small transformer-like model: token ids and a mask by name, a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.mix = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.mix(self.embed(input_ids)) * attention_mask[..., None].float()
        return {"logits": self.head(hidden.mean(1)), "hidden": hidden}


def picture_net() -> nn.Module:
    """A convolution net for 1x16x16 pictures."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def pictures() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Noise, labelled as the net itself labels it: its own accuracy is 1."""
    torch.manual_seed(5)
    net = picture_net().eval()
    for _ in range(4):
        batch = torch.rand(16, 1, 16, 16)
        with torch.no_grad():
            yield batch, net(batch).argmax(1)


def two_inputs() -> nn.Module:
    """The model with two inputs."""
    torch.manual_seed(6)
    return TwoInputs()


def sentences() -> list[dict[str, np.ndarray[Any, Any]]]:
    """Token ids and masks."""
    random = np.random.default_rng(7)
    return [
        {
            "input_ids": random.integers(0, 50, (2, length)),
            "attention_mask": np.ones((2, length), dtype=np.int64),
        }
        for length in (8, 8, 12, 12, 8, 12)
    ]


def sleeper() -> nn.Module:
    """Never there."""
    time.sleep(600)
    raise AssertionError


def glutton() -> nn.Module:
    """Takes memory until somebody stops it."""
    kept = []
    while True:
        kept.append(np.ones(1 << 22))
        time.sleep(0.01)


def crasher() -> nn.Module:
    """Ends its process."""
    os.abort()


def forked() -> nn.Module:
    """Ends its process, but for a copy of it that holds what it had open."""
    if os.fork() == 0:
        time.sleep(600)
    os.abort()


def needy() -> nn.Module:
    """Needs a package that nobody has."""
    import cloister_no_such_package  # type: ignore[import-not-found]  # noqa: F401

    raise AssertionError


def broken() -> nn.Module:
    """Is there, and cannot compute."""

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no forward today")

    return Broken()


def parent() -> nn.Module:
    """Starts a process that would outlive it, and says so in a file."""
    import subprocess
    from pathlib import Path

    child = subprocess.Popen(["sleep", "600"])
    Path(os.environ["CLOISTER_TEST_PID"]).write_text(str(child.pid))
    return sleeper()


def nothing() -> int:
    """No model at all."""
    return 7


def confused(outputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> float:
    """A metric with a fault of its own."""
    raise IndexError("there is no such class")


def error_rate(outputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> float:
    """The share of wrong labels: lower is better."""
    return float(np.mean(outputs.argmax(-1) != targets))


def small_bert() -> nn.Module:
    """A model of transformers, which answers with a class of its own; 8 wide."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(8)
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    return BertModel(config).eval()

"""Handwritten digits: a convolution net with real accuracy, and the data to optimize it with.

    python digits.py FOLDER

trains the net on scikit-learn's digits and writes ``model.pt2`` (an exported program), ``calibration.npz``
(training pictures) and ``validation.npz`` (pictures that it has not seen, with their digits).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn


def make_net() -> nn.Module:
    """A net for 8x8 pictures of one channel; ten scores."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def split() -> tuple[Any, Any, Any, Any]:
    """Pictures and digits to train with, and as many that are kept for judging."""
    digits = load_digits()
    pictures = (digits.images[:, None] / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        pictures, digits.target, test_size=0.5, random_state=1, stratify=digits.target
    )
    return train_x, train_y, test_x, test_y


def train(net: nn.Module, inputs: Any, targets: Any, epochs: int) -> nn.Module:
    """Fit a classifier; the same every time."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return net.eval()


def main(folder: Path) -> None:
    """Train, export, write."""
    torch.manual_seed(0)
    train_x, train_y, test_x, test_y = split()
    net = train(make_net(), train_x, train_y, epochs=12)
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(net, (torch.from_numpy(train_x[:2]),), dynamic_shapes=({0: rows},))
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / "model.pt2")
    np.savez(folder / "calibration.npz", pixels=train_x)
    np.savez(folder / "validation.npz", pixels=test_x, labels=test_y)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A table: measurements of tumours, a net and a forest that judge them, and the data to optimize both with.

    python tabular.py FOLDER

writes ``net.pt2`` and ``forest.joblib`` with ``calibration.npz`` and ``validation.npz``, from scikit-learn's
breast cancer data. Half of the patients are kept for judging.
"""

from __future__ import annotations

import sys
from pathlib import Path

import joblib
import numpy as np
import torch
from digits import train
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from torch import nn


class Net(nn.Module):
    """Thirty measurements, in their own units, to two scores."""

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.layers = nn.Sequential(
            nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        )

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        return self.layers((measurements - self.mean) / self.spread)


def main(folder: Path) -> None:
    """Train, export, write."""
    torch.manual_seed(0)
    table = load_breast_cancer()
    train_x, test_x, train_y, test_y = train_test_split(
        table.data.astype(np.float32), table.target, test_size=0.5, random_state=2, stratify=table.target
    )
    mean, spread = torch.from_numpy(train_x.mean(0)), torch.from_numpy(train_x.std(0))
    net = train(Net(mean, spread), train_x, train_y, epochs=30)
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(net, (torch.from_numpy(train_x[:2]),), dynamic_shapes=({0: rows},))
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / "net.pt2")
    joblib.dump(RandomForestClassifier(100, random_state=3).fit(train_x, train_y), folder / "forest.joblib")
    np.savez(folder / "calibration.npz", measurements=train_x)
    np.savez(folder / "validation.npz", measurements=test_x, labels=test_y)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

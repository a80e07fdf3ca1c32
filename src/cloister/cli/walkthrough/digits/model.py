"""The network of the demo; TorchServe's archives carry such a file beside the weights."""

import torch
from torch import nn


class DigitsNet(nn.Module):
    """Input float32 (n, 1, 8, 8) in 0..1; output logits float32 (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * 4 * 4, 96),
            nn.ReLU(),
            nn.Linear(96, 10),
        )
        self.register_buffer("marker", torch.zeros(32, dtype=torch.uint8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)

"""ResNet-50 and BERT-Large at true size, with random weights: for speed only, they know nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel, ResNetConfig, ResNetForImageClassification

TOKENS = 128


def resnet50() -> nn.Module:
    """25.6 million parameters, 1000 classes."""
    torch.manual_seed(50)
    return ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()


def pictures() -> Iterator[dict[str, Any]]:
    """Pictures of coloured rings, normalized as ImageNet's are; no two alike."""
    random = np.random.default_rng(1)
    axis = np.linspace(-1, 1, 224, dtype=np.float32)
    for _ in range(16):
        centres = random.uniform(-0.5, 0.5, (4, 2, 1)).astype(np.float32)
        distance = np.hypot(
            axis[None, :, None] - centres[:, 0, None], axis[None, None, :] - centres[:, 1, None]
        )
        rings = np.stack([np.sin(distance * value) for value in random.uniform(5, 40, 3)], axis=1)
        yield {"pixel_values": (rings * 2).astype(np.float32)}


def bert_large() -> nn.Module:
    """335 million parameters: 24 layers, 16 heads, 1024 wide."""
    torch.manual_seed(24)
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    return BertModel(config).eval()


def tokens() -> Iterator[dict[str, Any]]:
    """Mappings as tokenizers give them: 128 random tokens, their mask and their types."""
    random = np.random.default_rng(2)
    for _ in range(8):
        yield {
            "input_ids": random.integers(1000, 30000, (2, TOKENS)),
            "attention_mask": np.ones((2, TOKENS), dtype=np.int64),
            "token_type_ids": np.zeros((2, TOKENS), dtype=np.int64),
        }

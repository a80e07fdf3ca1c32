"""``ts.torch_handler.text_handler``: text cleaned and cut into tokens, and the vocabulary of the model.

Source: pytorch/serve 0.12, ts/torch_handler/text_handler.py (names and behaviour).
"""

from __future__ import annotations

import abc
import string
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from cloister.serve.torchserve.base_handler import BaseHandler
from cloister.serve.torchserve.text import expand_contractions, get_tokenizer
from cloister.serve.torchserve.util import CLEANUP_REGEX
from cloister.serve.torchserve.vocabulary import load_vocabulary


class TextHandler(BaseHandler, abc.ABC):
    """Base of the handlers of text."""

    def __init__(self) -> None:
        super().__init__()
        self.source_vocab: Any = None
        self.tokenizer = get_tokenizer("basic_english")
        self.input_text: Any = None
        self.lig: Any = None

    def initialize(self, context: Any) -> None:
        """Load the model and its vocabulary, ``source_vocab.pt``."""
        super().initialize(context)
        self.initialized = False
        named = self.manifest["model"].get("sourceVocab")
        path = str(Path(str(context.system_properties["model_dir"]), named)) if named else None
        self.source_vocab = load_vocabulary(Path(path or self.get_source_vocab_path(context)))
        self.initialized = True

    def get_source_vocab_path(self, ctx: Any) -> str:
        path = Path(str(ctx.system_properties.get("model_dir")), "source_vocab.pt")
        if not path.is_file():
            raise FileNotFoundError("the archive has no source_vocab.pt, which text handlers need")
        return str(path)

    def _expand_contractions(self, text: str) -> str:
        return expand_contractions(text)

    def _remove_accented_characters(self, text: str) -> str:
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")

    def _remove_html_tags(self, text: str) -> str:
        return CLEANUP_REGEX.sub("", text)

    def _remove_punctuation(self, text: str) -> str:
        return text.translate(str.maketrans("", "", string.punctuation))

    def _remove_puncutation(self, text: str) -> str:
        """Under the name that TorchServe had first."""
        return self._remove_punctuation(text)

    def _tokenize(self, text: str) -> list[str]:
        return self.tokenizer(text)

    def get_word_token(self, input_tokens: Iterable[str]) -> list[str]:
        """Tokens without the mark that byte-pair tokenizers put for a blank."""
        return [token.replace("Ġ", "") for token in input_tokens]

    def summarize_attributions(self, attributions: Any) -> Any:
        """Attributions of each token, over all its dimensions."""
        attributions = torch.nn.functional.softmax(attributions, dim=_implicit_dim(attributions))
        return attributions / torch.norm(attributions.sum(dim=-1))


def _implicit_dim(values: Any) -> int:
    """What ``softmax`` takes when no dimension is given."""
    return 0 if values.dim() in (0, 1, 3) else 1
